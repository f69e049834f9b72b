//! What somebody may do, from least to most; as it stands in certificates, tokens and records.

use std::fmt;
use std::str::FromStr;

/// What a certificate or a token allows. `View < Submit < Operate < Admin`: each may do what those before it may. The other two are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look at jobs and workers.
    View,
    /// Submit jobs, and cancel, resume and checkpoint them.
    Submit,
    /// Drain and readmit workers, take jobs off the list.
    Operate,
    /// Make and revoke tokens, read the audit record, unbind worker ids.
    Admin,
    /// Fill places of jobs; nothing that users may.
    Worker,
    /// Be a coordinator: what clients expect at the other end.
    Coordinator,
}

impl Role {
    pub const ALL: [Role; 6] = [Role::View, Role::Submit, Role::Operate, Role::Admin, Role::Worker, Role::Coordinator];

    pub fn name(self) -> &'static str {
        match self {
            Role::View => "view",
            Role::Submit => "submit",
            Role::Operate => "operate",
            Role::Admin => "admin",
            Role::Worker => "worker",
            Role::Coordinator => "coordinator",
        }
    }

    /// Whether who has this role may do what needs `least`.
    pub fn may(self, least: Role) -> bool {
        let is_user = |role: Role| role <= Role::Admin;
        self == least || is_user(self) && is_user(least) && self >= least
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        let found = Role::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| {
            format!("there is no role `{text}`; expected one of {}", Role::ALL.map(Role::name).join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_ordered_and_the_others_stand_apart() {
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
            for least in Role::ALL {
                let is_user = role <= Role::Admin && least <= Role::Admin;
                assert_eq!(role.may(least), role == least || is_user && role > least, "{role} {least}");
            }
        }
        assert!("root".parse::<Role>().is_err_and(|e| e.contains("view, submit")));
    }
}
