//! Reads the output of a run and sends it, one task per request.
//!
//! Files are read on a blocking thread, one read at a time and only once the client has taken the read before, so that
//! a request holds no more than two reads in memory and a client that does not read delays only itself. While there is
//! nothing to read, no thread is held. The task ends with the client, with the run, or at the limit of bytes.

use super::{LAST_LINES, options::LogOptions, writer::LogWriter};
use crate::{Boxed, Cut, LogReader, LogRun, LogStart, NodeBackend, Unavailable};
use bytes::Bytes;
use std::sync::Arc;
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    task::spawn_blocking,
    time::timeout,
};

/// Opens the output and starts to send it.
pub(crate) async fn start(
    node: Arc<dyn NodeBackend>,
    run: LogRun,
    options: LogOptions,
) -> Result<Receiver<Result<Bytes, Cut>>, Unavailable> {
    if !options.follow && !node.runs(&run) {
        // Past the deadline the answer has what is there.
        drop(timeout(LAST_LINES, node.output_closed(&run)).await);
    }
    let from = match (options.tail, options.since) {
        (Some(lines), _) => LogStart::Tail(lines),
        (None, Some(time)) => LogStart::Since(time),
        (None, None) => LogStart::Beginning,
    };
    let reader = node.open_log(&run, from).await?;
    let (parts, body) = mpsc::channel(1);
    tokio::spawn(async move {
        let closed = Arc::clone(&node);
        let closed = closed.output_closed(&run);
        if let Err(error) = send(reader, &options, closed, &parts).await {
            // A client that has gone needs no reason.
            parts.send(Err(Cut(error.to_string()))).await.ok();
        }
    });
    Ok(body)
}

async fn send(
    mut reader: Box<dyn LogReader>,
    options: &LogOptions,
    mut closed: Boxed<'_, ()>,
    parts: &Sender<Result<Bytes, Cut>>,
) -> Result<(), Unavailable> {
    let mut writer = LogWriter::new(options);
    let mut ends = !options.follow;
    loop {
        let Ok(slot) = parts.reserve().await else { return Ok(()) };
        let reading = spawn_blocking(move || {
            let more = reader.read(&mut |record| writer.take(record));
            (reader, writer, more)
        });
        let more;
        (reader, writer, more) =
            reading.await.map_err(|e| Unavailable(format!("cannot read the log: {e}")))?;
        let bytes = writer.bytes();
        if bytes.is_empty() {
            drop(slot);
        } else {
            slot.send(Ok(bytes.into()));
        }
        match more? {
            _ if writer.is_full() => return Ok(()),
            true => {}
            false if ends => return Ok(()),
            false => tokio::select! {
                () = parts.closed() => return Ok(()),
                // What was written before the output was closed is still read.
                () = &mut closed => ends = true,
                () = reader.changed() => {}
            },
        }
    }
}
