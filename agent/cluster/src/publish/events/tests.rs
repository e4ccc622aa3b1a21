//! The task against a small API server over plain HTTP.

use super::*;
use berth_core::ids::{PodKey, PodUid};
use berth_core::time::Wall;
use berth_kube::identity::Source;
use berth_source::RawPod;
use serde_json::{Value, json};
use std::{collections::VecDeque, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// A server that keeps requests. It answers by the next of its answers, and with 200 when none is left; the answer 0
/// breaks the connection.
#[derive(Default)]
struct Server {
    requests: Mutex<Vec<(String, Value)>>,
    answers: Mutex<VecDeque<u16>>,
    changed: Notify,
}

impl Server {
    async fn serve(self: Arc<Server>, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut line, mut length) = (String::new(), 0);
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let asked = line.trim_end_matches(" HTTP/1.1\r\n").to_owned();
            loop {
                line.clear();
                stream.read_line(&mut line).await?;
                match line.to_ascii_lowercase().split_once(':') {
                    Some(("content-length", n)) => length = n.trim().parse().unwrap(),
                    Some(_) => {}
                    None => break,
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            let code = lock(&self.answers).pop_front().unwrap_or(200);
            lock(&self.requests).push((asked, serde_json::from_slice(&body).unwrap()));
            self.changed.notify_one();
            if code == 0 {
                return Ok(());
            }
            let answer = format!("HTTP/1.1 {code} X\r\ncontent-length: 2\r\n\r\n{{}}");
            stream.write_all(answer.as_bytes()).await?;
        }
    }

    /// Waits for that many requests in all, and returns them.
    async fn requests(&self, many: usize) -> Vec<(String, Value)> {
        let waiting = async {
            while lock(&self.requests).len() < many {
                self.changed.notified().await;
            }
        };
        timeout(Duration::from_secs(20), waiting).await.expect("the requests");
        lock(&self.requests).clone()
    }
}

/// A server with these answers, and a task that sends to it.
async fn start(answers: &[u16]) -> (Arc<Server>, Events, Task) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Arc::new(Server { answers: Mutex::new(answers.to_vec().into()), ..Server::default() });
    let serving = Arc::clone(&server);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(Arc::clone(&serving).serve(stream));
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    let text = format!(
        "clusters: [{{name: c, cluster: {{server: \"{url}\"}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let pool = Pool::new(Source { kubeconfig, context: None }).await.unwrap();
    let api = ApiPods::default();
    api.put(&uid(), Arc::new(RawPod::new(&json!({ "metadata": { "resourceVersion": "42" } }))));
    let events = Events::new(NodeName::new("n1").unwrap(), api);
    let publisher = super::start(pool, RateLimit::default(), events.clone());
    (server, events, publisher)
}

fn uid() -> PodUid {
    PodUid::new("u-1").unwrap()
}

/// An event of a pod at that nanosecond.
fn record(reason: &str, at: i64) -> EventRecord {
    let key = PodKey { namespace: "shop".parse().unwrap(), name: "web".parse().unwrap() };
    EventRecord::once(Involved::Pod { key, uid: uid() }, Event::normal(reason, "m"), Wall(at))
}

const CREATE: &str = "POST /api/v1/namespaces/shop/events";

fn asked(requests: &[(String, Value)]) -> Vec<&str> {
    requests.iter().map(|(asked, _)| asked.as_str()).collect()
}

#[tokio::test]
async fn events_are_created_in_order_and_counted_in_place() {
    let (server, events, _task) = start(&[]).await;
    events.report(&record("Pulled", 1));
    events.report_of_node(Event::normal("Starting", "Starting kubelet."));
    server.requests(2).await;
    events.report(&record("Pulled", 2));
    let requests = server.requests(3).await;
    let patch = "PATCH /api/v1/namespaces/shop/events/web.1";
    assert_eq!(asked(&requests), [CREATE, "POST /api/v1/namespaces/default/events", patch]);
    let involved = &requests[0].1["involvedObject"];
    assert_eq!((&involved["uid"], &involved["resourceVersion"]), (&json!("u-1"), &json!("42")));
    assert_eq!(requests[2].1["count"], 2);
}

#[tokio::test]
async fn an_outage_loses_no_event_and_repeats_become_one_request() {
    // A connection that breaks, a server that is overloaded, and one that is not there.
    let (server, events, _task) = start(&[0, 429, 503]).await;
    for at in 1..=5 {
        events.report(&record("BackOff", at));
    }
    events.report(&record("Killing", 6));
    let requests = server.requests(5).await;
    let [.., created, last] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!((created.1["reason"].as_str(), created.1["count"].as_u64()), (Some("BackOff"), Some(5)));
    assert_eq!(last.1["reason"], "Killing");
    assert!(requests.iter().all(|(asked, _)| asked == CREATE), "{:?}", asked(&requests));
}

#[tokio::test]
async fn a_refused_event_is_dropped_and_a_forgotten_one_created_again() {
    // The namespace is being deleted; the name is taken; the event is forgotten after an hour.
    let (server, events, _task) = start(&[403, 409, 200, 404]).await;
    events.report(&record("Killing", 1));
    server.requests(1).await;
    events.report(&record("Pulled", 16));
    server.requests(3).await;
    events.report(&record("Pulled", 17));
    let requests = server.requests(5).await;
    let patch = "PATCH /api/v1/namespaces/shop/events/web.11";
    assert_eq!(asked(&requests), [CREATE, CREATE, CREATE, patch, CREATE]);
    let names: Vec<_> = requests.iter().map(|(_, body)| body["metadata"]["name"].as_str()).collect();
    assert_eq!(names, [Some("web.1"), Some("web.10"), Some("web.11"), None, Some("web.11")]);
    assert_eq!(requests[4].1["count"], 2);
}

#[tokio::test]
async fn what_an_earlier_agent_reported_is_counted_on() {
    let (server, events, _task) = start(&[]).await;
    events.remember(&EventRecord { count: 4, ..record("BackOff", 16) });
    events.report(&record("BackOff", 32));
    let requests = server.requests(1).await;
    assert_eq!(asked(&requests), ["PATCH /api/v1/namespaces/shop/events/web.10"]);
    assert_eq!(requests[0].1["count"], 5);
}
