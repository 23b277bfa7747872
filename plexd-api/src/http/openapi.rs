//! The API's own description: the OpenAPI document of the repository, as it was built in. Tests hold it against the
//! routes and the errors; what it says of answers is tried from outside, by a program that reads it.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use super::Api;
use super::error::ApiError;
use super::message::{Request, Response};
use super::read::found;
use crate::mirror::Rendered;

const DOCUMENT: &[u8] = include_bytes!("../../openapi.json");

static RENDERED: LazyLock<Rendered> = LazyLock::new(|| Rendered::by_content(Bytes::from_static(DOCUMENT)));

/// Answers with the document.
#[expect(clippy::unnecessary_wraps, reason = "as the other handlers")]
pub(super) fn document(_: &Arc<Api>, request: &Request) -> Result<Response, ApiError> {
    Ok(found(request, &RENDERED))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;

    use super::*;
    use crate::http::error::ApiError;
    use crate::http::routes::ROUTES;
    use crate::http::routes::tests::allowed;

    /// Statuses and texts that have no place at an operation: they are in the description of the whole.
    const EVERYWHERE: [(u16, &str); 3] = [
        (405, "method not allowed"),
        (400, "Content-Length and Transfer-Encoding exclude each other"),
        (431, "request header fields too large"),
    ];

    fn parsed() -> Value {
        serde_json::from_slice(DOCUMENT).unwrap()
    }

    /// Returns what `value` is or refers to.
    fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.strip_prefix('#').unwrap();
                document.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
            }
            None => value,
        }
    }

    /// Returns every operation, by path and method.
    fn operations(document: &Value) -> BTreeMap<(String, String), &Value> {
        let mut all = BTreeMap::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if method != "parameters" {
                    all.insert((path.clone(), method.to_uppercase()), operation);
                }
            }
        }
        all
    }

    /// Returns statuses and texts of the errors of an operation.
    fn errors(document: &Value, operation: &Value) -> BTreeSet<(u16, String)> {
        let mut all = BTreeSet::new();
        for (status, response) in operation["responses"].as_object().unwrap() {
            let response = resolved(document, response);
            let schema = &response["content"]["application/json"]["schema"]["allOf"][1];
            for text in schema["properties"]["error"]["enum"].as_array().into_iter().flatten() {
                all.insert((status.parse().unwrap(), text.as_str().unwrap().to_owned()));
            }
        }
        all
    }

    #[tokio::test]
    async fn the_document_has_the_routes_and_their_methods() {
        let document = parsed();
        let documented: BTreeSet<_> = operations(&document).into_keys().collect();
        let mut served = BTreeSet::new();
        for route in &ROUTES {
            let methods = allowed(route.path).await.into_iter();
            // HEAD goes with GET, as the document says of all.
            served.extend(
                methods.filter(|method| method != "HEAD").map(|method| (route.path.to_owned(), method)),
            );
        }
        assert_eq!(documented, served);
        for (path, item) in document["paths"].as_object().unwrap() {
            let keyed = item["parameters"].as_array().is_some_and(|parameters| parameters.len() == 1);
            assert_eq!(keyed, path.ends_with("{key}"), "{path}");
        }
    }

    #[test]
    fn the_document_names_every_error_and_no_other() {
        let document = parsed();
        let documented: BTreeSet<_> =
            operations(&document).values().flat_map(|operation| errors(&document, operation)).collect();
        let all: BTreeSet<_> = ApiError::ALL
            .iter()
            .map(|error| error.parts())
            .map(|(status, text)| (status.as_u16(), text.to_owned()))
            .collect();
        let general: BTreeSet<_> =
            EVERYWHERE.iter().map(|(status, text)| (*status, (*text).to_owned())).collect();
        assert!(documented.is_disjoint(&general));
        assert_eq!(documented.union(&general).cloned().collect::<BTreeSet<_>>(), all);
        for (_, operation) in operations(&document) {
            let errors = errors(&document, operation);
            for always in [ApiError::Unauthorized, ApiError::Forbidden] {
                let (status, text) = always.parts();
                assert!(errors.contains(&(status.as_u16(), text.to_owned())), "{text}: {operation}");
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_ids_are_unique() {
        fn walk(document: &Value, value: &Value) {
            resolved(document, value);
            match value {
                Value::Array(items) => items.iter().for_each(|item| walk(document, item)),
                Value::Object(members) => members.values().for_each(|member| walk(document, member)),
                _ => {}
            }
        }
        let document = parsed();
        walk(&document, &document);
        let operations = operations(&document);
        let ids: BTreeSet<_> =
            operations.values().map(|operation| operation["operationId"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), operations.len());
    }

    #[test]
    fn the_document_is_of_this_version() {
        let document = parsed();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(document["info"]["license"]["identifier"], env!("CARGO_PKG_LICENSE"));
    }
}
