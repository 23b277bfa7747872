//! Key material planted in an input, to be looked for in whatever plexd-core shows of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Members whose value is key material.
const SECRET_MEMBERS: [&str; 8] =
    ["psk", "new_psk", "node_secret_key", "token", "session_token", "key_pem", "private_key", "password"];

/// Members that are shown to applications as they are.
const OPEN_MEMBERS: [&str; 2] = ["payload", "metadata"];

/// 32 bytes, as every key.
const SECRET: &[u8; 32] = b"hunter2hunter2hunter2hunter2hunt";

/// The secret as text, as the beginning of base64, as hexadecimal digits, as a list of bytes.
const SHOWN: [&str; 4] =
    ["hunter2", "aHVudGVyMmh1bnRlcjJo", "68756e74657232", "104, 117, 110, 116, 101, 114"];

/// Returns the JSON text with key material in the place of every secret member: once as a key, once as what is none in
/// several ways. Nothing if there is no secret member, or the text shows what is looked for by itself.
pub fn plant(text: &[u8]) -> Vec<Vec<u8>> {
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return Vec::new() };
    let value_text = value.to_string();
    if is_shown(&value_text) || is_shown(&String::from_utf8_lossy(text)) {
        return Vec::new();
    }
    let forms = [json!(STANDARD.encode(SECRET)), json!("hunter2"), json!({"hunter2": ["hunter2"]})];
    forms
        .into_iter()
        .filter_map(|form| {
            let mut planted = value.clone();
            replace(&mut planted, &form).then(|| planted.to_string().into_bytes())
        })
        .collect()
}

/// Replaces the values of secret members; returns whether there was one.
fn replace(value: &mut Value, secret: &Value) -> bool {
    match value {
        Value::Object(members) => {
            let mut any = false;
            for (name, value) in members.iter_mut() {
                if SECRET_MEMBERS.contains(&name.as_str()) {
                    *value = secret.clone();
                    any = true;
                } else if !OPEN_MEMBERS.contains(&name.as_str()) {
                    any |= replace(value, secret);
                }
            }
            any
        }
        Value::Array(list) => list.iter_mut().fold(false, |any, value| replace(value, secret) | any),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn is_shown(text: &str) -> bool {
    SHOWN.iter().any(|form| text.contains(form))
}

/// Panics if `text`, made from an input with planted key material, shows it.
pub fn assert_hidden(text: &str) {
    assert!(!is_shown(text), "key material is shown: {text}");
}
