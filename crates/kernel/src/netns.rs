//! Network namespaces by name, made so that `ip netns` lists them.
//!
//! A name is a file below a directory, with the namespace mounted over it. A namespace is set up (owner
//! mark on its loopback device) *before* it gets its name: whoever finds the name, even after we were
//! killed in between, finds whose it is.
//!
//! What must happen inside a namespace happens on a thread that enters it and ends; what lasts are the
//! sockets it opened.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Cause, Error};
use crate::sys::{self, Namespace};
use crate::uapi::NSFS_MAGIC;

/// Where the calling thread's own namespace is found.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It stays alive for as long as this does, even when its name is removed.
#[derive(Debug)]
pub struct NetnsFd(OwnedFd);

/// Tells one namespace from any other, for as long as either exists.
pub(crate) type NetnsId = (u64, u64);

impl NetnsFd {
    /// Opens `/run/netns/<name>` or any other namespace file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_file(path).map_err(|cause| Error::new(format!("open network namespace {}", path.display()), cause))
    }

    /// The one that the calling thread is in.
    pub fn host() -> Result<Self, Error> {
        Self::open(Path::new(OWN))
    }

    /// Runs `f` on a short-lived thread inside the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        self.inside(f).map_err(|cause| Error::new("enter a network namespace", cause))
    }

    pub(crate) fn own() -> Result<Self, Cause> {
        Self::open_file(Path::new(OWN))
    }

    pub(crate) fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        sys::on_own_thread(|| {
            sys::setns(self, Namespace::Net)?;
            Ok(f())
        })?
    }

    pub(crate) fn id(&self) -> io::Result<NetnsId> {
        let mut stat = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: `stat` is a valid place for the result.
        sys::check(unsafe { libc::fstat(self.0.as_raw_fd(), stat.as_mut_ptr()) })?;
        // SAFETY: the call succeeded, so the structure is filled.
        let stat = unsafe { stat.assume_init() };
        Ok((stat.st_dev, stat.st_ino))
    }

    fn open_file(path: &Path) -> Result<Self, Cause> {
        let file = File::open(path)?;
        let mut stat = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: `stat` is a valid place for the result.
        sys::check(unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) })?;
        // SAFETY: the call succeeded, so the structure is filled.
        if unsafe { stat.assume_init() }.f_type != NSFS_MAGIC {
            return Err(Cause::Invalid(format!("{} is a file, not a namespace", path.display())));
        }
        Ok(Self(file.into()))
    }
}

impl AsRawFd for NetnsFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The directory of named namespaces.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// It exists and its mounts are shared.
    prepared: bool,
}

/// What [`Directory::create`] did.
#[derive(Debug)]
pub(crate) enum Created<T> {
    /// A new namespace, and what its set-up returned.
    New(NetnsFd, T),
    /// There is one of this name.
    Exists,
}

impl Directory {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), prepared: false }
    }

    /// Opens a namespace; `None` when there is none of this name.
    pub(crate) fn open(&self, name: &str) -> Result<Option<NetnsFd>, Cause> {
        match NetnsFd::open_file(&self.file(name)?) {
            Ok(netns) => Ok(Some(netns)),
            Err(Cause::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // A file without a namespace over it is what an interrupted creation leaves.
            Err(Cause::Invalid(_)) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Identity of the namespace that has the name now.
    pub(crate) fn id(&self, name: &str) -> Option<NetnsId> {
        let metadata = fs::metadata(self.file(name).ok()?).ok()?;
        Some((metadata.dev(), metadata.ino()))
    }

    /// All names, without a look at what is behind them.
    pub(crate) fn names(&self) -> Result<Vec<String>, Cause> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    /// Makes a namespace, runs `setup` inside it, then gives it its name.
    pub(crate) fn create<T: Send>(
        &mut self,
        name: &str,
        setup: impl FnOnce() -> Result<T, Cause> + Send,
    ) -> Result<Created<T>, Cause> {
        let file = self.file(name)?;
        self.prepare()?;
        match OpenOptions::new().write(true).create_new(true).mode(0o444).open(&file) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if self.open(name)?.is_some() {
                    return Ok(Created::Exists);
                }
            }
            Err(error) => return Err(error.into()),
        }
        let made = sys::on_own_thread(|| -> Result<_, Cause> {
            sys::unshare(&[Namespace::Net])?;
            let result = setup()?;
            sys::mount_bind(Path::new(OWN), &file)?;
            Ok((NetnsFd::open_file(&file)?, result))
        })?;
        match made {
            Ok((netns, result)) => Ok(Created::New(netns, result)),
            Err(cause) => {
                // Best effort: the cause matters, and a left-over file is used by the next attempt.
                let _ = fs::remove_file(&file);
                Err(cause)
            }
        }
    }

    /// Takes the name away; the namespace goes when nothing uses it any more.
    pub(crate) fn delete(&self, name: &str) -> Result<(), Cause> {
        let file = self.file(name)?;
        match sys::unmount(&file) {
            Ok(()) => {}
            // EINVAL: nothing is mounted there.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn file(&self, name: &str) -> Result<PathBuf, Cause> {
        if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
            return Err(Cause::Invalid(format!("'{name}' cannot be the name of a network namespace")));
        }
        Ok(self.path.join(name))
    }

    /// As `ip netns add` does: mounts below the directory must show in mount namespaces that were copied
    /// from this one, and go away there, too, or a service with a private `/tmp` would keep every
    /// namespace alive that existed when it was started.
    fn prepare(&mut self) -> Result<(), Cause> {
        if self.prepared {
            return Ok(());
        }
        fs::create_dir_all(&self.path)?;
        if let Err(error) = sys::mount_make_shared(&self.path) {
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error.into());
            }
            // Only a mount point can be shared.
            sys::mount_bind(&self.path, &self.path)?;
            sys::mount_make_shared(&self.path)?;
        }
        self.prepared = true;
        Ok(())
    }
}
