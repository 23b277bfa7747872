//! The command lines of the guide "Using the Local Node API", letter by letter: what the demo shows and the tests check
//! is what a reader types.

/// "Connecting to the API": via Unix socket.
pub const CONNECT: &str = r"curl -s --unix-socket /var/run/plexd/api.sock http://localhost/v1/state";

/// "Connecting to the API": via TCP.
pub const CONNECT_TCP: &str = r#"curl -s -H "Authorization: Bearer $(cat /etc/plexd/api-token)" \
http://127.0.0.1:9100/v1/state"#;

/// "Reading Node State".
pub const STATE: &str = r"curl -s --unix-socket /var/run/plexd/api.sock http://localhost/v1/state | jq .";

/// "List all metadata".
pub const METADATA: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/metadata | jq .";

/// "Read a single metadata key".
pub const METADATA_REGION: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/metadata/region | jq .";

/// "List data keys".
pub const DATA: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/data | jq .";

/// "Read a single data entry".
pub const DATA_ROUTES: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/data/routes.json | jq .";

/// "List available secret keys".
pub const SECRETS: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/secrets | jq .";

/// "Read a secret value".
pub const SECRET_PASSWORD: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/secrets/db%2Fpassword | jq .";

/// "Create a report entry".
pub const REPORT_CREATE: &str = r#"curl -s --unix-socket /var/run/plexd/api.sock \
-X PUT \
-H "Content-Type: application/json" \
http://localhost/v1/state/report/health \
-d '{
"content_type": "application/json",
"payload": { "status": "healthy", "uptime_s": 86400 }
}' | jq ."#;

/// "Update with optimistic locking"; the second time, the version is stale.
pub const REPORT_UPDATE: &str = r#"curl -s --unix-socket /var/run/plexd/api.sock \
-X PUT \
-H "Content-Type: application/json" \
-H "If-Match: 1" \
http://localhost/v1/state/report/health \
-d '{
"content_type": "application/json",
"payload": { "status": "degraded", "uptime_s": 90000 }
}' | jq ."#;

/// "Read a report entry".
pub const REPORT_READ: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/report/health | jq .";

/// "List all report keys".
pub const REPORT_LIST: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/report | jq .";

/// "Delete a report entry".
pub const REPORT_DELETE: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
-X DELETE \
http://localhost/v1/state/report/health";

/// "Making requests over TCP": reading.
pub const TCP_STATE: &str = r#"TOKEN=$(cat /etc/plexd/api-token)
curl -s -H "Authorization: Bearer $TOKEN" \
http://127.0.0.1:9100/v1/state | jq ."#;

/// "Making requests over TCP": writing.
pub const TCP_REPORT: &str = r#"TOKEN=$(cat /etc/plexd/api-token)
curl -s -H "Authorization: Bearer $TOKEN" \
-H "Content-Type: application/json" \
-X PUT \
http://127.0.0.1:9100/v1/state/report/health \
-d '{"content_type":"application/json","payload":{"status":"healthy"}}'"#;
