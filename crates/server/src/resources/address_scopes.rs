//! Address scopes: what is in one is routed without translation, and its prefixes are unique.

use evergate_model::AddressScopeId;
use serde_json::json;

use super::{Call, Resource, object, rbac_policies};
use crate::attributes::{self, Absent, Attribute, Body, Filter, Kind, Object, Table};
use crate::error::ApiError;
use crate::objects::subnet_pool::SubnetPool;
use crate::objects::{Changes, query_in};
use crate::policy::Rule;
use crate::random;
use crate::values;

/// The resource `address-scopes`.
#[derive(Clone, Copy, Debug)]
pub struct AddressScopes;

static TABLE: Table = Table {
    singular: "address_scope",
    plural: "address_scopes",
    sql: "address_scopes",
    bulk: true,
    tagged: false,
    create: Rule::Member,
    get: Rule::ReaderOrGranted,
    update: Rule::Member,
    delete: Rule::Member,
    scope: rbac_policies::SCOPE,
    attributes: &[
        attributes::ID,
        attributes::NAME,
        attributes::PROJECT_ID,
        Attribute::new("ip_version", Kind::OneOf(&[4, 6])).post(Absent::Required).column("t.ip_version"),
        Attribute::new("shared", Kind::Bool)
            .post(Absent::Bool(false))
            .put()
            .set_by(Rule::Admin)
            .filter(Filter::ForProject(rbac_policies::IS_SHARED))
            .sort(rbac_policies::IS_SHARED),
    ],
};

impl Resource for AddressScopes {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::AddressScopeNotFound { id: id.to_owned() }
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        let shared = rbac_policies::shared_with_caller(call, ids)?.read()?;
        let sql = "SELECT id, project_id, name, ip_version FROM address_scopes WHERE id IN ({})";
        let scopes = query_in(call.tx, sql, ids, |row| {
            let id = row.text(0)?;
            let shared = shared.contains(&id);
            let (project, name, version) = (row.text(1)?, row.text(2)?, row.int(3)?);
            Ok(object(json!({"id": id, "project_id": project, "name": name, "ip_version": version, "shared": shared})))
        });
        Ok(scopes?)
    }

    fn create(&self, call: Call<'_>, body: &Body) -> Result<String, ApiError> {
        let (id, project) = (random::id().to_string(), body.need::<String>("project_id")?);
        let sql = "INSERT INTO address_scopes (id, project_id, name, ip_version, created_at, updated_at) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?5)";
        let (name, version): (String, u8) = (body.need("name")?, body.need("ip_version")?);
        call.tx.execute(sql, &values![&id, &project, name, version, call.tx.now_text()])?;
        if body.need("shared")? {
            rbac_policies::share(call, "address_scope", &id, &project)?;
        }
        Ok(id)
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let private = !rbac_policies::shared_with_all(call, id)?;
        match body.get::<bool>("shared")? {
            Some(true) if private => {
                let sql = "SELECT project_id FROM address_scopes WHERE id = ?1";
                let project = call.tx.query_opt(sql, &values![id], |row| row.text(0))?.unwrap_or_default();
                rbac_policies::share(call, "address_scope", id, &project)?;
            }
            // As Neutron: subnet pools of others may be in it.
            Some(false) if !private => {
                let reason = "Shared address scope can't be unshared".to_owned();
                return Err(ApiError::AddressScopeUpdateError { id: id.to_owned(), reason });
            }
            _ => {}
        }
        let mut changes = Changes::default();
        changes.set("name", body.get::<String>("name")?);
        Ok(changes.write(call.tx, "address_scopes", id)?)
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        let scope: AddressScopeId = super::parse_id(self, id)?;
        if !SubnetPool::in_scope(call.tx, scope)?.is_empty() {
            return Err(ApiError::AddressScopeInUse { id: id.to_owned() });
        }
        call.tx.execute("DELETE FROM rbac_policies WHERE object_id = ?1", &values![id])?;
        call.tx.execute("DELETE FROM address_scopes WHERE id = ?1", &values![id])?;
        Ok(())
    }
}
