//! Enrolment against the development control plane, and against one that answers wrongly.

use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::control::dev::{DevControlPlane, ScriptedControlPlane, register, until};
use crate::storage::DataDir;
use crate::types::SystemClock;

/// One process as far as enrolment goes.
struct Rig {
    folder: tempfile::TempDir,
    board: Board,
    state: State,
    identity: CurrentIdentity,
    join: JoinRequests,
    shutdown: Shutdown,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
}

fn start(folder: tempfile::TempDir, client: Client, token: TokenLookup) -> Rig {
    searching(folder, client, token, None)
}

fn searching(
    folder: tempfile::TempDir,
    client: Client,
    token: TokenLookup,
    search: Option<TokenSearch>,
) -> Rig {
    let board = Board::default();
    let directory = DataDir::open(folder.path()).unwrap();
    let clock = Arc::new(SystemClock);
    let path = directory.file("state.redb");
    let (state, keeper) = State::open(&path, clock.clone(), board.clone(), None).unwrap();
    let store = IdentityStore::new(directory);
    let loaded = store.load(&*clock).unwrap();
    let machine = Machine::new(Some("web-01")).unwrap();
    let start = Start { store, loaded, token, machine };
    let (enroller, identity, join) =
        Enroller::new(start, client, state.clone(), board.clone(), Arc::default());
    let enroller = match search {
        Some(search) => enroller.searching(search),
        None => enroller,
    };
    let shutdown = Shutdown::new();
    let tasks =
        vec![tokio::spawn(keeper.run(shutdown.clone())), tokio::spawn(enroller.run(shutdown.clone()))];
    Rig { folder, board, state, identity, join, shutdown, tasks }
}

fn new(client: Client, token: TokenLookup) -> Rig {
    start(tempfile::tempdir().unwrap(), client, token)
}

fn token(text: &str) -> Token {
    Token::parse(text).unwrap()
}

fn found(text: &str) -> TokenLookup {
    TokenLookup::Found(token(text))
}

impl Rig {
    async fn enrolled(&mut self) -> Arc<Identity> {
        let enrolled = self.identity.wait_for(Option::is_some);
        let identity = tokio::time::timeout(Duration::from_mins(1), enrolled).await.expect("enrols");
        identity.unwrap().clone().unwrap()
    }

    fn problems(&self) -> String {
        self.board.problems().into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("\n")
    }

    async fn problem(&self, text: &str) {
        until(text, async || self.problems().contains(text).then_some(())).await;
    }

    fn has_file(&self, name: &str) -> bool {
        self.folder.path().join(name).is_file()
    }

    async fn stopped(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap().unwrap();
        }
        self.folder
    }
}

#[tokio::test]
async fn a_token_becomes_an_identity_that_outlives_the_process() {
    let plane = DevControlPlane::start().await;
    let other = plane.enrol("web-00").await;
    let mut rig = new(plane.client(), found(&plane.token().await));
    let identity = rig.enrolled().await;
    assert_eq!(rig.board.enrolment(), Enrolment::Enrolled);
    assert_eq!(rig.problems(), "");
    let desired = Arc::clone(&rig.state.desired().borrow());
    assert_eq!(desired.peers.keys().collect::<Vec<_>>(), [&other.node_id]);
    assert_eq!(desired.signing_keys.as_ref().unwrap().current, identity.signing_key);
    let node = plane.get(&format!("nodes/{}", identity.node_id)).await;
    assert_eq!((&node["hostname"], &node["metadata"]["os"]), (&json!("web-01"), &json!("linux")));
    assert_eq!(node["public_key"], identity.private_key.public().to_string());
    assert!(node["capabilities"]["binary"]["checksum"].as_str().unwrap().starts_with("sha256:"));

    let folder = rig.stopped().await;
    plane.fault(json!({"refuse_connections": true})).await;
    let mut rig = start(folder, plane.client(), TokenLookup::Unusable("no token file".to_owned()));
    let again = rig.enrolled().await;
    assert_eq!((&again.node_id, again.mesh_ip), (&identity.node_id, identity.mesh_ip));
    assert_eq!(again.private_key.public(), identity.private_key.public());
    assert_eq!(rig.problems(), "", "a node that has its identity needs no token");
    let refused = rig.join.join(token("x")).await.unwrap_err();
    assert_eq!(refused, JoinError::AlreadyEnrolled(identity.node_id.clone()));
    rig.stopped().await;
}

#[tokio::test]
async fn an_answer_that_was_lost_is_asked_for_again_with_the_same_token_and_key() {
    let plane = DevControlPlane::start().await;
    let text = plane.token().await;
    let folder = tempfile::tempdir().unwrap();
    let key = PrivateKey::generate().unwrap();
    IdentityStore::new(DataDir::open(folder.path()).unwrap()).save_key(&key).unwrap();
    let lost = register(&plane.client(), &text, "web-01", key.clone()).await;
    let mut rig = start(folder, plane.client(), found(&text));
    let identity = rig.enrolled().await;
    assert_eq!((&identity.node_id, identity.private_key.public()), (&lost.node_id, key.public()));
    assert_eq!(plane.get("nodes").await["nodes"].as_array().unwrap().len(), 1);
    rig.stopped().await;
}

#[tokio::test]
async fn a_refused_token_is_told_with_the_way_out_which_works() {
    let plane = DevControlPlane::start().await;
    let mut rig = new(plane.client(), found("plx_enroll_bogus"));
    rig.problem("invalid, expired or already used; get a new one and run 'plexd-ctl join'").await;
    assert_eq!(rig.board.enrolment(), Enrolment::WaitingForToken);
    assert!(!rig.problems().contains("bogus"), "{}", rig.problems());
    assert!(rig.has_file("wireguard.key") && !rig.has_file("identity.json"));
    let refused = rig.join.join(token("also-bogus")).await.unwrap_err();
    assert!(matches!(refused, JoinError::Refused(_)), "{refused}");
    let joined = rig.join.join(token(&plane.token().await)).await.unwrap();
    assert!(rig.has_file("identity.json"), "durable before it is told");
    assert_eq!(rig.enrolled().await.node_id, joined.node_id);
    assert_eq!((rig.board.enrolment(), rig.problems()), (Enrolment::Enrolled, String::new()));
    rig.stopped().await;
}

#[tokio::test]
async fn without_a_token_or_with_an_unusable_one_the_node_says_what_to_do() {
    let plane = DevControlPlane::start().await;
    let rig = new(plane.client(), TokenLookup::Missing);
    rig.problem("get one from the control plane and run: plexd-ctl join").await;
    rig.stopped().await;
    let rig = new(plane.client(), TokenLookup::Unusable("token file /x is empty".to_owned()));
    rig.problem("token file /x is empty").await;
    assert_eq!(rig.board.problems().len(), 1);
    rig.join.join(token(&plane.token().await)).await.unwrap();
    assert_eq!(rig.problems(), "");
    rig.stopped().await;
}

#[tokio::test]
async fn a_host_name_that_is_taken_is_told_with_the_way_out() {
    let plane = DevControlPlane::start().await;
    plane.enrol("web-01").await;
    let rig = new(plane.client(), found(&plane.token().await));
    rig.problem("set 'hostname' or remove the other node, then run 'plexd-ctl join'").await;
    assert_eq!(rig.board.enrolment(), Enrolment::WaitingForToken);
    rig.stopped().await;
}

#[tokio::test]
async fn while_the_control_plane_is_away_the_token_is_kept_and_tried_again() {
    let plane = DevControlPlane::start().await;
    plane.fault(json!({"endpoint": "register", "status": 503})).await;
    let mut rig = new(plane.client(), TokenLookup::Missing);
    let error = rig.join.join(token(&plane.token().await)).await.unwrap_err();
    assert!(error.to_string().contains("status 503; plexd-core keeps trying with this token"), "{error}");
    plane.no_faults().await;
    rig.enrolled().await;
    assert_eq!(rig.problems(), "");
    rig.stopped().await;
}

#[tokio::test]
async fn an_identity_that_cannot_be_stored_is_not_acted_on_and_tried_again_with_the_same_token() {
    let plane = DevControlPlane::start().await;
    let mut rig = new(plane.client(), TokenLookup::Missing);
    let in_the_way = rig.folder.path().join("identity.json");
    std::fs::create_dir(&in_the_way).unwrap();
    let error = rig.join.join(token(&plane.token().await)).await.unwrap_err();
    assert!(error.to_string().contains("the identity cannot be stored"), "{error}");
    assert!(rig.identity.borrow().is_none());
    std::fs::remove_dir(&in_the_way).unwrap();
    rig.enrolled().await;
    assert!(rig.has_file("identity.json"));
    assert_eq!(plane.get("nodes").await["nodes"].as_array().unwrap().len(), 1);
    rig.stopped().await;
}

#[tokio::test]
async fn a_node_secret_key_of_31_bytes_is_a_clear_error_and_nothing_is_stored() {
    let plane = ScriptedControlPlane::start(|_| {
        let body = r#"{"node_id":"n","mesh_ip":"10.100.1.1","signing_public_key":"lzfsfTYabt3dAJLEqKxeoFMirl7fTCM4vI7skRAuuHA=","node_secret_key":"FfxsQVb4qzEtMrwtB9h1FuRCqcLEShg6onJZXHGwlA=="}"#;
        ("201 Created", body.to_owned())
    })
    .await;
    let rig = new(plane.client(), TokenLookup::Missing);
    let error = rig.join.join(token("t")).await.unwrap_err().to_string();
    assert!(error.contains("node_secret_key has 31 bytes, not 32"), "{error}");
    rig.problem("node_secret_key has 31 bytes, not 32").await;
    assert!(rig.identity.borrow().is_none() && !rig.has_file("identity.json"));
    assert!(!rig.problems().contains("FfxsQVb4"));
    rig.stopped().await;
}

#[tokio::test]
async fn a_node_that_the_control_plane_forgot_takes_a_new_token_from_its_file_and_keeps_its_data() {
    let plane = DevControlPlane::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let used = plane.token().await;
    std::fs::write(&file, &used).unwrap();
    let env = "PLEXD_NO_SUCH_VARIABLE".to_owned();
    let sources = crate::config::TokenSources { file: file.clone(), file_configured: true, env };
    let search = TokenSearch::new(sources, Duration::from_millis(50));
    let mut rig = searching(tempfile::tempdir().unwrap(), plane.client(), found(&used), Some(search));
    let first = rig.enrolled().await;
    let ticket = rig.state.begin_pull().await.unwrap();
    let state = crate::state::FullState {
        data: vec![crate::state::samples::data("routes", 3)],
        ..crate::state::FullState::default()
    };
    rig.state.pulled(ticket, state).await.unwrap();

    plane.client().deregister(&first.credentials()).await.unwrap();
    rig.board.set_enrolment(Enrolment::Unauthorized);
    rig.problem("there is no new bootstrap token; put one into ").await;
    assert_eq!(rig.board.enrolment(), Enrolment::Unauthorized, "the token that was used is not tried again");
    std::fs::write(&file, "plx_enroll_bogus").unwrap();
    rig.problem("invalid, expired or already used; get a new one").await;
    assert_eq!(rig.board.enrolment(), Enrolment::Unauthorized);
    std::fs::write(&file, plane.token().await).unwrap();
    let again = rig
        .identity
        .wait_for(|identity| identity.as_ref().is_some_and(|identity| identity.node_id != first.node_id));
    let again = tokio::time::timeout(Duration::from_mins(1), again).await.expect("enrols").unwrap().clone();
    assert_eq!(again.unwrap().private_key.public(), first.private_key.public());
    assert_eq!((rig.board.enrolment(), rig.problems()), (Enrolment::Enrolled, String::new()));
    assert!(rig.state.desired().borrow().data.get("routes").is_some());
    rig.stopped().await;
}
