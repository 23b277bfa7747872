//! The command lines of the guide "Using the Local Node API", letter by letter: what the demo shows and the tests check
//! is what a reader types.

/// "Connecting to the API": via Unix socket.
pub const CONNECT: &str = r"curl -s --unix-socket /var/run/plexd/api.sock http://localhost/v1/state";

/// "Connecting to the API": via TCP.
pub const CONNECT_TCP: &str = r#"curl -s -H "Authorization: Bearer $(cat /etc/plexd/api-token)" \
http://127.0.0.1:9100/v1/state"#;

/// "Reading Node State".
pub const STATE: &str = r"curl -s --unix-socket /var/run/plexd/api.sock http://localhost/v1/state | jq .";

/// "Reading Node State": the answer.
pub const STATE_ANSWER: &str = r#"{
"metadata": {
"node_id": "edge-us-west-42",
"region": "us-west-2",
"role": "gateway"
},
"data_keys": [
{ "key": "nginx.conf", "version": 3, "content_type": "text/plain" }
],
"secret_keys": [
{ "key": "tls/server.key", "version": 1 }
],
"report_keys": [
{ "key": "health", "version": 5 }
]
}"#;

/// "List all metadata".
pub const METADATA: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/metadata | jq .";

/// "List all metadata": the answer.
pub const METADATA_ANSWER: &str = r#"{
"node_id": "edge-us-west-42",
"region": "us-west-2",
"role": "gateway"
}"#;

/// "Read a single metadata key".
pub const METADATA_REGION: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/metadata/region | jq .";

/// "Read a single metadata key": the answer.
pub const METADATA_REGION_ANSWER: &str = r#"{
"key": "region",
"value": "us-west-2"
}"#;

/// "Read a single metadata key": the answer where there is none.
pub const NOT_FOUND: &str = r#"{ "error": "not found" }"#;

/// "List data keys".
pub const DATA: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/data | jq .";

/// "List data keys": the answer.
pub const DATA_ANSWER: &str = r#"[
{ "key": "nginx.conf", "version": 3, "content_type": "text/plain" },
{ "key": "routes.json", "version": 1, "content_type": "application/json" }
]"#;

/// "Read a single data entry".
pub const DATA_ROUTES: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/data/routes.json | jq .";

/// "Read a single data entry": the answer.
pub const DATA_ROUTES_ANSWER: &str = r#"{
"key": "routes.json",
"content_type": "application/json",
"payload": { "default_backend": "10.0.0.5:8080" },
"version": 1,
"updated_at": "2025-06-01T12:34:56Z"
}"#;

/// "List available secret keys".
pub const SECRETS: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/secrets | jq .";

/// "List available secret keys": the answer.
pub const SECRETS_ANSWER: &str = r#"[
{ "key": "tls/server.key", "version": 1 },
{ "key": "db/password", "version": 2 }
]"#;

/// "Read a secret value".
pub const SECRET_PASSWORD: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/secrets/db%2Fpassword | jq .";

/// "Read a secret value": the answer.
pub const SECRET_PASSWORD_ANSWER: &str = r#"{
"key": "db/password",
"value": "s3cret-p@ssw0rd",
"version": 2
}"#;

/// "Read a secret value": the answer while the control plane is unreachable.
pub const CONTROL_PLANE_UNAVAILABLE: &str = r#"{ "error": "control plane unavailable" }"#;

/// "Create a report entry".
pub const REPORT_CREATE: &str = r#"curl -s --unix-socket /var/run/plexd/api.sock \
-X PUT \
-H "Content-Type: application/json" \
http://localhost/v1/state/report/health \
-d '{
"content_type": "application/json",
"payload": { "status": "healthy", "uptime_s": 86400 }
}' | jq ."#;

/// "Create a report entry": the answer, but for the time.
pub const REPORT_CREATE_ANSWER: &str = r#"{
"key": "health",
"content_type": "application/json",
"payload": { "status": "healthy", "uptime_s": 86400 },
"version": 1,
"updated_at": "2025-06-01T13:00:00Z"
}"#;

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

/// "Update with optimistic locking": the answer, but for the time.
pub const REPORT_UPDATE_ANSWER: &str = r#"{
"key": "health",
"content_type": "application/json",
"payload": { "status": "degraded", "uptime_s": 90000 },
"version": 2,
"updated_at": "2025-06-01T13:05:00Z"
}"#;

/// "Update with optimistic locking": the answer if the version does not match.
pub const VERSION_CONFLICT: &str = r#"{ "error": "version conflict" }"#;

/// "Read a report entry".
pub const REPORT_READ: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/report/health | jq .";

/// "List all report keys".
pub const REPORT_LIST: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
http://localhost/v1/state/report | jq .";

/// "List all report keys": the answer.
pub const REPORT_LIST_ANSWER: &str = r#"[
{ "key": "health", "version": 2 },
{ "key": "inventory", "version": 1 }
]"#;

/// "Delete a report entry".
pub const REPORT_DELETE: &str = r"curl -s --unix-socket /var/run/plexd/api.sock \
-X DELETE \
http://localhost/v1/state/report/health";

/// "Create a token file".
pub const TOKEN: &str = r"openssl rand -base64 32 > /etc/plexd/api-token
chmod 600 /etc/plexd/api-token";

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

/// "Making requests over TCP": the answer without a token or with an invalid one.
pub const UNAUTHORIZED: &str = r#"{ "error": "unauthorized" }"#;
