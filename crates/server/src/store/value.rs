//! Values that go into and come out of SQL, without naming the database behind it.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use evergate_model::{
    AddressScopeId, AgentId, FloatingIpId, Mac, NetworkId, PortForwardingId, PortId, RouterId, SubnetId,
};

use super::StoreError;

/// One parameter of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// SQL's NULL.
    Null,
    /// Integers, and booleans as 0 and 1.
    Int(i64),
    /// Everything else: names, ids, addresses, JSON.
    Text(String),
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Int(i64::from(b))
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        Self::Text(s.to_owned())
    }
}

impl From<String> for Value {
    fn from(s: String) -> Self {
        Self::Text(s)
    }
}

impl From<&String> for Value {
    fn from(s: &String) -> Self {
        Self::Text(s.clone())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

macro_rules! small_integers {
    ($($t:ty),*) => {$(
        impl From<$t> for Value {
            fn from(n: $t) -> Self {
                Self::Int(i64::from(n))
            }
        }
    )*};
}
small_integers!(u8, u16, u32, i32);

macro_rules! as_text {
    ($($t:ty),*) => {$(
        impl From<$t> for Value {
            fn from(value: $t) -> Self {
                Self::Text(value.to_string())
            }
        }
        impl From<&$t> for Value {
            fn from(value: &$t) -> Self {
                Self::Text(value.to_string())
            }
        }
    )*};
}
as_text!(
    AddressScopeId,
    AgentId,
    FloatingIpId,
    NetworkId,
    PortForwardingId,
    PortId,
    RouterId,
    SubnetId,
    Mac,
    IpAddr,
    Ipv4Addr
);

/// Makes a `[Value; n]` of anything that converts into values: `values![id, true, name]`.
#[macro_export]
macro_rules! values {
    ($($value:expr),* $(,)?) => { [$($crate::store::Value::from($value)),*] };
}

/// One row of an answer; columns are numbered from 0 in the order of the SELECT.
pub enum Row<'a> {
    /// From SQLite.
    Sqlite(&'a rusqlite::Row<'a>),
    /// From PostgreSQL.
    Postgres(&'a tokio_postgres::Row),
}

impl Row<'_> {
    /// Reads a column as it is.
    pub(super) fn value(&self, column: usize) -> Result<Value, StoreError> {
        match self {
            Self::Sqlite(row) => {
                let value = row.get_ref(column)?;
                let corrupt = || StoreError::Corrupt { column, text: format!("{value:?}") };
                match value {
                    rusqlite::types::ValueRef::Null => Ok(Value::Null),
                    rusqlite::types::ValueRef::Integer(n) => Ok(Value::Int(n)),
                    rusqlite::types::ValueRef::Text(text) => match std::str::from_utf8(text) {
                        Ok(text) => Ok(Value::Text(text.to_owned())),
                        Err(_) => Err(corrupt()),
                    },
                    rusqlite::types::ValueRef::Real(_) | rusqlite::types::ValueRef::Blob(_) => Err(corrupt()),
                }
            }
            Self::Postgres(row) => row.try_get(column).map_err(|error| StoreError::Database(error.into())),
        }
    }

    /// Reads a column that is not NULL as text.
    pub fn text(&self, column: usize) -> Result<String, StoreError> {
        self.opt_text(column)?.ok_or_else(|| null(column))
    }

    /// Reads a column as text, or `None` where it is NULL.
    pub fn opt_text(&self, column: usize) -> Result<Option<String>, StoreError> {
        match self.value(column)? {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            Value::Int(n) => Err(StoreError::Corrupt { column, text: n.to_string() }),
        }
    }

    /// Reads an integer column.
    pub fn int(&self, column: usize) -> Result<i64, StoreError> {
        self.opt_int(column)?.ok_or_else(|| null(column))
    }

    /// Reads an integer column, or `None` where it is NULL.
    pub fn opt_int(&self, column: usize) -> Result<Option<i64>, StoreError> {
        match self.value(column)? {
            Value::Null => Ok(None),
            Value::Int(n) => Ok(Some(n)),
            Value::Text(text) => Err(StoreError::Corrupt { column, text }),
        }
    }

    /// Reads an integer column into a smaller type.
    pub fn num<T: TryFrom<i64>>(&self, column: usize) -> Result<T, StoreError> {
        let n = self.int(column)?;
        T::try_from(n).map_err(|_| StoreError::Corrupt { column, text: n.to_string() })
    }

    /// Reads a 0/1 column.
    pub fn bool(&self, column: usize) -> Result<bool, StoreError> {
        Ok(self.int(column)? != 0)
    }

    /// Reads an id, an address or anything else that is stored in its printed form.
    pub fn parse<T: FromStr>(&self, column: usize) -> Result<T, StoreError> {
        let text = self.text(column)?;
        text.parse().map_err(|_| StoreError::Corrupt { column, text })
    }

    /// Like [`Row::parse`], or `None` where the column is NULL.
    pub fn opt_parse<T: FromStr>(&self, column: usize) -> Result<Option<T>, StoreError> {
        let Some(text) = self.opt_text(column)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| StoreError::Corrupt { column, text })
    }

    /// Reads a column that holds JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&self, column: usize) -> Result<T, StoreError> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|_| StoreError::Corrupt { column, text })
    }
}

fn null(column: usize) -> StoreError {
    StoreError::Corrupt { column, text: "NULL".into() }
}
