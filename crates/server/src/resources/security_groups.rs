//! Security groups. They are kept and shown as Neutron does; hosts do not filter by them.

use serde_json::{Value as Json, json};

use super::{Call, Resource, object, quotas, rbac_policies, security_group_rules, standard};
use crate::attributes::{self, Absent, Attribute, Body, Filter, Kind, Object, Table};
use crate::error::ApiError;
use crate::objects::security_group::{self, DEFAULT, Rule as GroupRule, SecurityGroup};
use crate::objects::{Changes, Standard, tags};
use crate::policy::Rule;
use crate::random;
use crate::values;

/// The resource `security-groups`.
#[derive(Clone, Copy, Debug)]
pub struct SecurityGroups;

static TABLE: Table = Table {
    singular: "security_group",
    plural: "security_groups",
    sql: "security_groups",
    bulk: true,
    tagged: true,
    create: Rule::Member,
    get: Rule::ReaderOrGranted,
    update: Rule::Member,
    delete: Rule::Member,
    scope: rbac_policies::SCOPE,
    attributes: &[
        attributes::ID,
        attributes::NAME,
        attributes::DESCRIPTION,
        attributes::PROJECT_ID,
        attributes::CREATED_AT,
        attributes::UPDATED_AT,
        attributes::REVISION_NUMBER,
        attributes::TAGS,
        Attribute::new("stateful", Kind::Bool).post(Absent::Bool(true)).put().filter(Filter::Column("t.stateful")),
        Attribute::new("security_group_rules", Kind::Computed),
        Attribute::new("shared", Kind::Bool).filter(Filter::ForProject(rbac_policies::IS_SHARED)),
    ],
};

impl Resource for SecurityGroups {
    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn not_found(&self, id: &str) -> ApiError {
        ApiError::SecurityGroupNotFound { id: id.to_owned() }
    }

    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError> {
        let (tags, shared) = (tags::of_many(call.tx, ids)?, rbac_policies::shared_with_caller(call, ids)?);
        let (mut tags, shared) = (tags.read()?, shared.read()?);
        let rules = security_group_rules::shown(call, &GroupRule::of_groups(call.tx, ids)?)?;
        let groups = SecurityGroup::many(call.tx, ids)?.into_iter().map(|group| {
            let own = rules.iter().filter(|rule| rule["security_group_id"] == group.id.as_str());
            let mut shown = object(json!({
                "id": group.id,
                "project_id": group.project_id,
                "name": group.name,
                "description": group.description,
                "stateful": group.stateful,
                "shared": shared.contains(&group.id),
                "security_group_rules": own.cloned().map(Json::from).collect::<Vec<_>>(),
            }));
            standard(&mut shown, &group.standard, tags.remove(&group.id));
            shown
        });
        Ok(groups.collect())
    }

    fn create(&self, call: Call<'_>, body: &Body) -> Result<String, ApiError> {
        let (name, project_id): (String, String) = (body.need("name")?, body.need("project_id")?);
        refuse_reserved(&name)?;
        security_group::ensure_default(call.tx, &project_id)?;
        // The rules that it starts with.
        quotas::claim(call, "security_group_rule", &project_id, 2)?;
        let group = SecurityGroup {
            id: random::id().to_string(),
            project_id,
            name,
            description: body.need("description")?,
            is_default: false,
            stateful: body.need("stateful")?,
            standard: Standard::default(),
        };
        group.insert(call.tx)?;
        Ok(group.id)
    }

    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError> {
        let group = SecurityGroup::get(call.tx, id)?;
        let name = body.get::<String>("name")?;
        if let Some(name) = name.as_deref().filter(|name| *name != group.name) {
            if group.is_default {
                return Err(ApiError::SecurityGroupCannotUpdateDefault {});
            }
            refuse_reserved(name)?;
        }
        let stateful = body.get::<bool>("stateful")?;
        if stateful.is_some_and(|stateful| stateful != group.stateful) && is_used(call, id)? {
            return Err(ApiError::SecurityGroupInUse { id: id.to_owned(), reason: "in use".into() });
        }
        let mut changes = Changes::default();
        changes.set("name", name);
        changes.set("description", body.get::<String>("description")?);
        changes.set("stateful", stateful);
        Ok(changes.write(call.tx, "security_groups", id)?)
    }

    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError> {
        let group = SecurityGroup::get(call.tx, id)?;
        if group.is_default && !call.ctx.is_admin {
            return Err(ApiError::SecurityGroupCannotRemoveDefault {});
        }
        if is_used(call, id)? {
            return Err(ApiError::SecurityGroupInUse { id: id.to_owned(), reason: "in use".into() });
        }
        Ok(group.delete(call.tx)?)
    }
}

fn refuse_reserved(name: &str) -> Result<(), ApiError> {
    if name.eq_ignore_ascii_case(DEFAULT) { Err(ApiError::SecurityGroupDefaultAlreadyExists {}) } else { Ok(()) }
}

fn is_used(call: Call<'_>, id: &str) -> Result<bool, ApiError> {
    let sql = "SELECT count(*) FROM port_security_groups WHERE security_group_id = ?1";
    Ok(call.tx.count(sql, &values![id])? > 0)
}
