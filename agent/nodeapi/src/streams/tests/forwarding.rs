//! Forwarding of ports: by SPDY, by SPDY in a WebSocket, and by channels.

use super::*;
use crate::testing::FakePorts;

/// A port that sends back what it gets.
async fn forwarder() -> Forwarder {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = socket.split();
                tokio::io::copy(&mut from, &mut to).await.ok();
            });
        }
    });
    let pod = Pod::new(
        PodUid::new("u-1").unwrap(),
        PodKey { namespace: Namespace::new("ns").unwrap(), name: PodName::new("web").unwrap() },
        NodeName::new("n").unwrap(),
    );
    let pod = PodState {
        pod: Arc::new(pod),
        status: Arc::new(PodStatus::new(Phase::Running, QosClass::BestEffort)),
    };
    Forwarder::new(Arc::new(FakePorts(BTreeMap::from([(80, address)]))), pod)
}

async fn forwarding(tunnelled: bool) {
    let forwarder = forwarder().await;
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let served = tokio::spawn(async move {
        let (reader, queues, streams) = spdy::connection(port_forward::admit, tunnelled);
        serve(theirs, reader, queues, forwarder.serve(streams)).await
    });
    let mut client = Client::new(ours, tunnelled);
    const PAIRS: u32 = 300;
    for pair in 0..PAIRS {
        let id = pair.to_string();
        for (stream, kind) in [(1 + 4 * pair, "error"), (3 + 4 * pair, "data")] {
            client.open(stream, &[("streamtype", kind), ("port", "80"), ("requestid", &id)]).await;
        }
        client.data(3 + 4 * pair, format!("pair {pair}").as_bytes(), true).await;
    }
    // One connection to a port that nobody listens on, by an old client that names no connection; and a wrong port.
    client.open(4001, &[("streamtype", "error"), ("port", "81")]).await;
    client.open(4003, &[("streamtype", "data"), ("port", "81")]).await;
    client.open(4005, &[("streamtype", "data"), ("port", "0")]).await;

    let (mut bytes, mut finished, mut resets) = (BTreeMap::<u32, Vec<u8>>::new(), 0, Vec::new());
    while finished < 2 * PAIRS || resets.len() < 3 {
        match client.next().await.unwrap() {
            Frame::Data { stream, payload, fin } => {
                bytes.entry(stream).or_default().extend(payload);
                finished += u32::from(fin);
            }
            Frame::RstStream { stream, .. } => resets.push(stream),
            Frame::SynReply { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    for pair in 0..PAIRS {
        assert_eq!(bytes[&(3 + 4 * pair)], format!("pair {pair}").as_bytes());
        assert!(bytes[&(1 + 4 * pair)].is_empty());
    }
    resets.sort_unstable();
    assert_eq!(resets, [4001, 4003, 4005]);
    let text = String::from_utf8(bytes[&4001].clone()).unwrap();
    assert_eq!(text, "error forwarding port 81 to pod ns/web, uid u-1: connection refused");
    drop(client);
    assert!(served.await.unwrap().is_err(), "the client has gone first");
}

#[tokio::test]
async fn three_hundred_connections_are_forwarded_on_one() {
    forwarding(false).await;
}

#[tokio::test]
async fn connections_are_forwarded_in_the_messages_of_a_websocket() {
    forwarding(true).await;
}

#[tokio::test]
async fn ports_by_channels_begin_with_their_number() {
    let forwarder = forwarder().await;
    let (mut ours, theirs) = tokio::io::duplex(64 * 1024);
    let served = tokio::spawn(async move {
        let mut maker = ChannelMaker::new(Codec::Binary);
        let channels = port_forward::channels(&mut maker, &[80, 81]);
        let end = maker.outlet(0);
        let (reader, queues) = maker.connection();
        serve(theirs, reader, queues, forwarder.serve_channels(channels, end)).await
    });
    ours.write_all(&masked(b"\0ping")).await.unwrap();
    let (mut raw, mut heard) = (BytesMut::new(), BTreeMap::<u8, Vec<u8>>::new());
    while heard.get(&0).is_none_or(|data| data.len() < 6) || heard.get(&3).is_none_or(|e| e.len() < 3) {
        timeout(Duration::from_secs(20), ours.read_buf(&mut raw)).await.unwrap().unwrap();
        while let Some((_, mut payload)) = unframed(&mut raw) {
            let channel = payload.get_u8();
            heard.entry(channel).or_default().extend(payload);
        }
    }
    assert_eq!((&heard[&0][..], &heard[&1][..]), (&b"\x50\0ping"[..], &b"\x50\0"[..]));
    assert!(heard[&3].starts_with(b"\x51\0error forwarding port 81"));
    drop(ours);
    assert!(served.await.unwrap().is_err());
}
