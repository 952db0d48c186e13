//! `evergate identity`: users, projects and roles of the embedded identity, from the command line.
//!
//! It changes the identity file under the lock that the server takes as well; a running server notices within a
//! second. Passwords come from a file or standard input, never from arguments, which everybody on the machine sees.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::Subcommand;
use jiff::Timestamp;

use super::base64url;
use super::directory::{Assignment, Directory, DirectoryError, Project, User, change, new_id};
use crate::cli::{ConfigFiles, print};
use crate::random;

/// Shortest password that is taken.
const SHORTEST: usize = 8;

/// Manage users, projects and roles of the identity that is built in.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    files: ConfigFiles,
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Users.
    #[command(subcommand)]
    User(UserVerb),
    /// Projects.
    #[command(subcommand)]
    Project(ProjectVerb),
    /// Roles, and who has them where.
    #[command(subcommand)]
    Role(RoleVerb),
}

#[derive(Clone, Debug, Subcommand)]
enum UserVerb {
    /// Print all users, with their roles on projects.
    List,
    /// Add a user; without --password-file, a password is made and printed.
    Add {
        /// Its name.
        name: String,
        /// Project that the user logs in to unless told otherwise; must be there.
        #[arg(long)]
        project: Option<String>,
        /// Role on that project.
        #[arg(long, default_value = "member", requires = "project")]
        role: String,
        /// File with the password in its first line; - is standard input.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Remove a user, with its roles and application credentials.
    Delete {
        /// Its name or id.
        name: String,
    },
    /// Change a user's password, which also ends its tokens; without --password-file, one is made and printed.
    SetPassword {
        /// Its name or id.
        name: String,
        /// File with the password in its first line; - is standard input.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Let a user log in again.
    Enable {
        /// Its name or id.
        name: String,
    },
    /// Keep a user from logging in, and end its tokens.
    Disable {
        /// Its name or id.
        name: String,
    },
}

#[derive(Clone, Debug, Subcommand)]
enum ProjectVerb {
    /// Print all projects.
    List,
    /// Add a project.
    Add {
        /// Its name.
        name: String,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Remove a project from the identity; what it has in the API stays until an admin removes it.
    Delete {
        /// Its name or id.
        name: String,
    },
}

#[derive(Clone, Debug, Subcommand)]
enum RoleVerb {
    /// Print all roles.
    List,
    /// Give a user a role on a project.
    Assign {
        /// The role.
        role: String,
        /// The user, by name or id.
        #[arg(long)]
        user: String,
        /// The project, by name or id.
        #[arg(long)]
        project: String,
    },
    /// Take a role on a project from a user.
    Remove {
        /// The role.
        role: String,
        /// The user, by name or id.
        #[arg(long)]
        user: String,
        /// The project, by name or id.
        #[arg(long)]
        project: String,
    },
}

/// Does what the command line says.
///
/// # Errors
///
/// When there is no identity file, or no such user, project or role.
pub fn run(args: Args) -> anyhow::Result<()> {
    let settings = args.files.settings()?;
    let text = act(&settings.identity_file, args.what, &mut io::stdin())?;
    print(&text)
}

/// Does it to a file; answers what to print.
fn act(file: &Path, what: What, input: &mut impl io::Read) -> anyhow::Result<String> {
    match what {
        What::User(UserVerb::List) => Ok(users(&read(file)?)),
        What::Project(ProjectVerb::List) => {
            let directory = read(file)?;
            Ok(lines(directory.projects.iter().map(|p| [p.id.as_str(), on(p.enabled), &p.name, &p.description])))
        }
        What::Role(RoleVerb::List) => {
            Ok(lines(read(file)?.roles.iter().map(|role| [role.id.as_str(), role.name.as_str()])))
        }
        What::User(UserVerb::Add { name, project, role, password_file }) => {
            let (password, made) = password(password_file.as_deref(), input)?;
            let id = write(file, |directory| add_user(directory, &name, project.as_deref(), &role, &password))?;
            Ok(told(&id, made.then_some(&password)))
        }
        What::User(UserVerb::SetPassword { name, password_file }) => {
            let (password, made) = password(password_file.as_deref(), input)?;
            let hash = hash(&password)?;
            let id = write(file, |directory| {
                let user = user(directory, &name)?;
                user.password_hash = Some(hash);
                user.password_changed_us = Some(Timestamp::now().as_microsecond());
                Ok(user.id.clone())
            })?;
            Ok(told(&id, made.then_some(&password)))
        }
        What::User(UserVerb::Delete { name }) => write(file, |directory| {
            let id = user(directory, &name)?.id.clone();
            directory.users.retain(|user| user.id != id);
            directory.assignments.retain(|a| a.user != id);
            directory.application_credentials.retain(|c| c.user != id);
            Ok(String::new())
        }),
        What::User(UserVerb::Enable { name }) => write(file, |directory| enable(directory, &name, true)),
        What::User(UserVerb::Disable { name }) => write(file, |directory| enable(directory, &name, false)),
        What::Project(ProjectVerb::Add { name, description }) => {
            let id = write(file, |directory| {
                refuse_taken("project", &name, directory.project_named(&name).is_some())?;
                directory.projects.push(Project { id: new_id(), name, description, enabled: true });
                Ok(directory.projects.last().map(|p| p.id.clone()).unwrap_or_default())
            })?;
            Ok(told(&id, None))
        }
        What::Project(ProjectVerb::Delete { name }) => write(file, |directory| {
            let id = project_id(directory, &name)?;
            directory.projects.retain(|project| project.id != id);
            directory.assignments.retain(|a| a.project != id);
            directory.application_credentials.retain(|c| c.project != id);
            for user in &mut directory.users {
                user.default_project_id.take_if(|default| *default == id);
            }
            Ok(String::new())
        }),
        What::Role(RoleVerb::Assign { role, user, project }) => write(file, |directory| {
            let assignment = assignment(directory, &role, &user, &project)?;
            if !directory.assignments.contains(&assignment) {
                directory.assignments.push(assignment);
            }
            Ok(String::new())
        }),
        What::Role(RoleVerb::Remove { role, user, project }) => write(file, |directory| {
            let assignment = assignment(directory, &role, &user, &project)?;
            let before = directory.assignments.len();
            directory.assignments.retain(|a| *a != assignment);
            if directory.assignments.len() == before {
                bail!("user '{user}' has no role '{role}' on project '{project}' of its own");
            }
            Ok(String::new())
        }),
    }
}

const NO_FILE: &str = "the server makes it on its first start; identity_file in section [evergate] says where it is";

fn read(file: &Path) -> anyhow::Result<Directory> {
    Directory::load(file)?.ok_or_else(|| anyhow!("there is no identity file {}: {NO_FILE}", file.display()))
}

fn write(file: &Path, work: impl FnOnce(&mut Directory) -> anyhow::Result<String>) -> anyhow::Result<String> {
    if !file.exists() {
        bail!("there is no identity file {}: {NO_FILE}", file.display());
    }
    change::<_, Refusal>(file, |directory| work(directory).map_err(Refusal)).map(|(told, _)| told).map_err(|r| r.0)
}

/// Any reason not to change the file.
struct Refusal(anyhow::Error);

impl From<DirectoryError> for Refusal {
    fn from(error: DirectoryError) -> Self {
        Self(error.into())
    }
}

fn add_user(
    directory: &mut Directory,
    name: &str,
    project: Option<&str>,
    role: &str,
    password: &str,
) -> anyhow::Result<String> {
    refuse_taken("user", name, directory.user_named(name).is_some())?;
    let id = new_id();
    let default_project_id = project.map(|project| project_id(directory, project)).transpose()?;
    directory.users.push(User::new(&id, name, default_project_id.clone(), hash(password)?));
    if let Some(project) = default_project_id {
        let assignment = assignment(directory, role, &id, &project)?;
        directory.assignments.push(assignment);
    }
    Ok(id)
}

fn refuse_taken(kind: &str, name: &str, taken: bool) -> anyhow::Result<()> {
    if name.is_empty() || name.chars().count() > 255 {
        bail!("'{name}' cannot be a {kind}'s name: 1 to 255 letters are needed");
    }
    if taken { bail!("there is a {kind} '{name}' already") } else { Ok(()) }
}

fn enable(directory: &mut Directory, name: &str, enabled: bool) -> anyhow::Result<String> {
    user(directory, name)?.enabled = enabled;
    Ok(String::new())
}

fn user<'d>(directory: &'d mut Directory, name: &str) -> anyhow::Result<&'d mut User> {
    let found = directory.users.iter_mut().find(|user| user.name == name || user.id == name);
    found.ok_or_else(|| anyhow!("there is no user '{name}'"))
}

fn project_id(directory: &Directory, name: &str) -> anyhow::Result<String> {
    let found = directory.project_named(name).or_else(|| directory.project(name));
    found.map(|project| project.id.clone()).ok_or_else(|| anyhow!("there is no project '{name}'"))
}

fn assignment(directory: &mut Directory, role: &str, who: &str, project: &str) -> anyhow::Result<Assignment> {
    let names: Vec<&str> = directory.roles.iter().map(|role| role.name.as_str()).collect();
    let unknown = || anyhow!("there is no role '{role}'; there are {}", names.join(", "));
    let role = directory.role_named(role).ok_or_else(unknown)?.id.clone();
    let project = project_id(directory, project)?;
    Ok(Assignment { user: user(directory, who)?.id.clone(), project, role })
}

fn users(directory: &Directory) -> String {
    let rows = directory.users.iter().map(|user| {
        let roles =
            directory.assignments.iter().filter(|a| a.user == user.id).filter_map(|a| {
                Some(format!("{}:{}", directory.project(&a.project)?.name, directory.role(&a.role)?.name))
            });
        [user.id.clone(), on(user.enabled).to_owned(), user.name.clone(), roles.collect::<Vec<_>>().join(" ")]
    });
    lines(rows)
}

fn on(enabled: bool) -> &'static str {
    if enabled { "enabled" } else { "disabled" }
}

/// Rows of words, for people and for `cut`.
fn lines<const N: usize>(rows: impl Iterator<Item = [impl AsRef<str>; N]>) -> String {
    rows.map(|row| row.each_ref().map(AsRef::as_ref).join("\t").trim_end().to_owned() + "\n").collect()
}

/// An id, and a password if it was made here.
fn told(id: &str, password: Option<&String>) -> String {
    match password {
        Some(password) => format!("id {id}\npassword {password}\n"),
        None => format!("id {id}\n"),
    }
}

/// Reads a password, or makes one; tells whether it did.
fn password(file: Option<&Path>, input: &mut impl io::Read) -> anyhow::Result<(String, bool)> {
    let Some(file) = file else { return Ok((base64url::encode(&random::bytes::<18>()), true)) };
    let mut text = String::new();
    if file == Path::new("-") {
        input.take(4096).read_to_string(&mut text).context("failed to read the password from standard input")?;
    } else {
        text = std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
    }
    let password = text.lines().next().unwrap_or_default().to_owned();
    if password.chars().count() < SHORTEST {
        bail!("the password is too short: {SHORTEST} letters are needed at least");
    }
    Ok((password, false))
}

fn hash(password: &str) -> anyhow::Result<String> {
    super::password::hash(password).map_err(|error| anyhow!("failed to hash the password: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::private_file::tests::TempDir;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn run(file: &Path, line: &str, input: &str) -> anyhow::Result<String> {
        let args = Cli::try_parse_from(["identity"].into_iter().chain(line.split(' ')))?.args;
        act(file, args.what, &mut input.as_bytes())
    }

    #[test]
    fn users_and_projects_come_and_go_with_what_hangs_on_them() {
        let dir = TempDir::new();
        let file = dir.path().join("identity.json");
        assert!(run(&file, "user list", "").unwrap_err().to_string().contains("first start"));
        Directory::generate().unwrap().0.create(&file).unwrap();
        let does = |line: &str| run(&file, line, "a long password\n").unwrap();
        let fails = |line: &str| run(&file, line, "short\n").unwrap_err().to_string();

        assert!(does("project add p1 --description x").starts_with("id "));
        let added = does("user add ann --project p1 --role reader");
        let made = added.lines().find_map(|line| line.strip_prefix("password ")).unwrap();
        assert!(!std::fs::read_to_string(&file).unwrap().contains(made));
        assert!(!does("user add bob --password-file -").contains("password"));
        does("role assign member --user bob --project p1");
        does("role assign member --user bob --project p1");
        does("user disable ann");
        let listed = does("user list");
        assert!(
            listed.contains("\tdisabled\tann\tp1:reader\n") && listed.contains("\tenabled\tbob\tp1:member\n"),
            "{listed}"
        );
        does("role remove member --user bob --project p1");
        does("user enable ann");
        does("project delete p1");
        assert!(does("user list").contains("\tenabled\tann\n"));
        does("user delete ann");
        assert!(!does("user list").contains("ann"));
        assert_eq!(does("role list").lines().count(), 5);

        assert!(fails("user add bob").contains("already"));
        assert!(fails("user add eve --password-file -").contains("too short"));
        assert!(fails("user add eve --project nowhere").contains("no project 'nowhere'"));
        assert!(fails("role assign boss --user bob --project demo").contains("there are admin, manager"));
        assert!(fails("role remove member --user bob --project demo").contains("of its own"));
        assert!(!does("user list").contains("eve"), "a refused change leaves nothing behind");
    }
}
