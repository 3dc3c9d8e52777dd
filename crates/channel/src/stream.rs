//! One stream's queues, credit and state. Owns the flow-control arithmetic; does no I/O and never
//! waits. What is queued here is bounded by the windows, whatever the peer sends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use banger_protocol::agent::frame::{Kind, Lane, MAX_PAYLOAD, WINDOW};
use bytes::{Bytes, BytesMut};

use crate::ChannelError;
use crate::mux::Schedule;

/// Credit goes back in portions of this size.
const CREDIT_STEP: u32 = WINDOW / 4;
/// Neighbouring pieces of one lane are joined up to this size.
const JOIN: usize = 32 * 1024;
/// From this many queued events, pieces are joined even across another lane's.
const MANY_EVENTS: usize = 512;
/// Messages that may wait to be read, and to be sent.
const MAX_MESSAGES: usize = 64;

/// Locks, also when a holder panicked: every critical section leaves the data consistent.
pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something to send.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Open(Bytes),
    Message(Bytes),
    Data(Lane, Bytes),
    Eof(Lane),
    Credit(Lane, u32),
    Reset(Bytes),
    Close,
}

/// Something received.
#[derive(Debug)]
pub(crate) enum Incoming {
    Data(Lane, BytesMut),
    Eof(Lane),
    Message(Bytes),
}

/// Which events a reader is after. Messages may overtake data, so that a signal reaches a command that reads no input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Any,
    Lanes,
    /// Lanes, and of their bytes at most so many; the rest stays.
    AtMost(usize),
    Messages,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Open,
    /// The guest closed it in good order, or this side queued its close.
    Closed,
    /// Reset, or its session is over.
    Dead(ChannelError),
}

struct Inner {
    state: State,
    /// In the schedule's ready queue.
    queued: bool,
    out: VecDeque<Outgoing>,
    out_messages: usize,
    reset_due: Option<Bytes>,
    /// What may still be sent, per lane.
    credit: [u32; 3],
    /// Whether this side said it is done with a lane.
    eof_out: [bool; 3],
    events: VecDeque<Incoming>,
    messages: usize,
    /// What the peer may still send, per lane.
    window: [u32; 3],
    /// What the consumer took and the peer does not know of, per lane.
    taken: [u32; 3],
    eof_in: [bool; 3],
    /// Nobody reads any more: data is dropped and its credit returned.
    discard: bool,
    readers: Vec<Waker>,
    senders: Vec<Waker>,
    ends: Vec<Waker>,
}

/// A stream, shared by its handles, the reader and the writer of the session.
pub(crate) struct Stream {
    pub(crate) id: u32,
    pub(crate) token: u32,
    /// The lanes the peer may send on.
    incoming: [bool; 3],
    schedule: Arc<Schedule>,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stream {}", self.id)
    }
}

impl Stream {
    pub(crate) fn new(id: u32, token: u32, incoming: [bool; 3], schedule: Arc<Schedule>) -> Arc<Self> {
        Arc::new(Self {
            id,
            token,
            incoming,
            schedule,
            inner: Mutex::new(Inner {
                state: State::Open,
                queued: false,
                out: VecDeque::new(),
                out_messages: 0,
                reset_due: None,
                credit: [WINDOW; 3],
                eof_out: [false; 3],
                events: VecDeque::new(),
                messages: 0,
                window: [WINDOW; 3],
                taken: [0; 3],
                eof_in: [false; 3],
                discard: false,
                readers: Vec::new(),
                senders: Vec::new(),
                ends: Vec::new(),
            }),
        })
    }

    fn schedule(self: &Arc<Self>, inner: &mut Inner) {
        if !inner.queued {
            inner.queued = true;
            self.schedule.push(Arc::clone(self));
        }
    }

    fn push(self: &Arc<Self>, inner: &mut Inner, out: Outgoing) {
        inner.out.push_back(out);
        self.schedule(inner);
    }

    // What this side sends.

    /// Queues the request that begins the stream.
    pub(crate) fn open(self: &Arc<Self>, request: Bytes) {
        self.push(&mut lock(&self.inner), Outgoing::Open(request));
    }

    /// Queues as much of `data` as credit allows; ready when some went.
    pub(crate) fn poll_send(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        lane: Lane,
        data: &mut Bytes,
    ) -> Poll<Result<(), ChannelError>> {
        let mut inner = lock(&self.inner);
        inner.sendable()?;
        if inner.eof_out[lane as usize] {
            return Poll::Ready(Err(ChannelError::Ended));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let room = inner.credit[lane as usize] as usize;
        if room == 0 {
            park(&mut inner.senders, cx);
            return Poll::Pending;
        }
        let piece = data.split_to(data.len().min(room).min(MAX_PAYLOAD));
        inner.credit[lane as usize] -= u32::try_from(piece.len()).unwrap_or(u32::MAX);
        self.push(&mut inner, Outgoing::Data(lane, piece));
        Poll::Ready(Ok(()))
    }

    /// No more data on this lane.
    pub(crate) fn eof(self: &Arc<Self>, lane: Lane) -> Result<(), ChannelError> {
        let mut inner = lock(&self.inner);
        inner.sendable()?;
        if !std::mem::replace(&mut inner.eof_out[lane as usize], true) {
            self.push(&mut inner, Outgoing::Eof(lane));
        }
        Ok(())
    }

    /// Queues a message; waits while too many are queued.
    pub(crate) fn poll_message(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        bytes: &Bytes,
    ) -> Poll<Result<(), ChannelError>> {
        let mut inner = lock(&self.inner);
        inner.sendable()?;
        if bytes.len() > MAX_PAYLOAD {
            return Poll::Ready(Err(ChannelError::Malformed(format!("it has {} bytes", bytes.len()))));
        }
        if inner.out_messages >= MAX_MESSAGES {
            park(&mut inner.senders, cx);
            return Poll::Pending;
        }
        inner.out_messages += 1;
        self.push(&mut inner, Outgoing::Message(bytes.clone()));
        Poll::Ready(Ok(()))
    }

    /// Ends the stream in good order, after all that is queued.
    pub(crate) fn close(self: &Arc<Self>) {
        let mut inner = lock(&self.inner);
        if inner.state == State::Open {
            inner.state = State::Closed;
            self.push(&mut inner, Outgoing::Close);
            inner.wake_all();
        }
    }

    /// Ends the stream at once and tells the peer. What is queued in either direction is dropped.
    pub(crate) fn reset(self: &Arc<Self>, why: ChannelError, payload: Bytes) {
        let mut inner = lock(&self.inner);
        if inner.state == State::Open {
            inner.die(why, true);
            inner.reset_due = Some(payload);
            self.schedule(&mut inner);
        }
    }

    /// The next thing to put on the wire, and whether the stream has more. Credit first: it unblocks the peer.
    pub(crate) fn next_outgoing(&self) -> (Option<Outgoing>, bool) {
        let mut inner = lock(&self.inner);
        let out = if let Some(payload) = inner.reset_due.take() {
            Some(Outgoing::Reset(payload))
        } else if let Some((lane, n)) = inner.credit_due() {
            Some(Outgoing::Credit(lane, n))
        } else {
            inner.out.pop_front()
        };
        if matches!(out, Some(Outgoing::Message(_))) {
            inner.out_messages -= 1;
            wake(&mut inner.senders);
        }
        let more = !inner.out.is_empty() || inner.has_credit_due();
        inner.queued = more;
        (out, more)
    }

    // What the peer sends.

    /// Takes a frame in.
    ///
    /// # Errors
    /// A sentence when the peer broke a rule; the caller resets the stream.
    pub(crate) fn accept(
        self: &Arc<Self>,
        kind: Kind,
        lane: Lane,
        payload: BytesMut,
    ) -> Result<(), &'static str> {
        let mut inner = lock(&self.inner);
        if inner.state != State::Open {
            return Ok(());
        }
        let at = lane as usize;
        match kind {
            Kind::Data | Kind::Eof if !self.incoming[at] => return Err("data on a lane of the other side"),
            Kind::Data => {
                if inner.eof_in[at] {
                    return Err("data after the end of its lane");
                }
                let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                let Some(left) = inner.window[at].checked_sub(len) else {
                    return Err("more data than it had credit for");
                };
                inner.window[at] = left;
                if inner.discard {
                    self.took(&mut inner, lane, len);
                } else if len > 0 {
                    inner.queue_data(lane, payload);
                }
            }
            Kind::Eof => {
                if !std::mem::replace(&mut inner.eof_in[at], true) && !inner.discard {
                    inner.events.push_back(Incoming::Eof(lane));
                }
            }
            Kind::Message => {
                if inner.messages >= MAX_MESSAGES {
                    return Err("more messages than anybody reads");
                }
                if !inner.discard {
                    inner.messages += 1;
                    inner.events.push_back(Incoming::Message(payload.freeze()));
                }
            }
            Kind::Credit => {
                let n = <[u8; 4]>::try_from(&payload[..])
                    .map(u32::from_le_bytes)
                    .map_err(|_| "a malformed credit")?;
                let sum = inner.credit[at].checked_add(n).filter(|sum| *sum <= WINDOW);
                inner.credit[at] = sum.ok_or("credit for data that was never sent")?;
                wake(&mut inner.senders);
            }
            Kind::Close => {
                inner.state = State::Closed;
                inner.out.clear();
                inner.wake_all();
            }
            Kind::Open => return Err("a stream opened twice"),
            Kind::Reset => {}
        }
        wake(&mut inner.readers);
        Ok(())
    }

    /// Ends the stream without telling the peer. With `forget`, what was received and not yet read is dropped.
    pub(crate) fn kill(&self, why: ChannelError, forget: bool) {
        let mut inner = lock(&self.inner);
        if inner.state == State::Open {
            inner.die(why, forget);
        }
    }

    /// The next event of those asked for; `None` after a close.
    pub(crate) fn poll_next(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        want: Want,
    ) -> Poll<Result<Option<Incoming>, ChannelError>> {
        let mut inner = lock(&self.inner);
        let at = inner.events.iter().position(|e| match want {
            Want::Any => true,
            Want::Lanes | Want::AtMost(_) => !matches!(e, Incoming::Message(_)),
            Want::Messages => matches!(e, Incoming::Message(_)),
        });
        if let Some(event) = at.and_then(|at| take(&mut inner.events, at, want)) {
            match &event {
                Incoming::Data(lane, data) => {
                    self.took(&mut inner, *lane, u32::try_from(data.len()).unwrap_or(u32::MAX));
                }
                Incoming::Message(_) => inner.messages -= 1,
                Incoming::Eof(_) => {}
            }
            return Poll::Ready(Ok(Some(event)));
        }
        match &inner.state {
            State::Open => {
                park(&mut inner.readers, cx);
                Poll::Pending
            }
            State::Closed => Poll::Ready(Ok(None)),
            State::Dead(why) => Poll::Ready(Err(why.clone())),
        }
    }

    /// Ready when the stream was reset or its session ended.
    pub(crate) fn poll_dead(&self, cx: &mut Context<'_>) -> Poll<ChannelError> {
        let mut inner = lock(&self.inner);
        if let State::Dead(why) = &inner.state {
            return Poll::Ready(why.clone());
        }
        park(&mut inner.ends, cx);
        Poll::Pending
    }

    /// Nobody will read any more.
    pub(crate) fn discard(self: &Arc<Self>) {
        let mut inner = lock(&self.inner);
        inner.discard = true;
        inner.messages = 0;
        for event in std::mem::take(&mut inner.events) {
            if let Incoming::Data(lane, data) = event {
                self.took(&mut inner, lane, u32::try_from(data.len()).unwrap_or(u32::MAX));
            }
        }
    }

    fn took(self: &Arc<Self>, inner: &mut Inner, lane: Lane, len: u32) {
        inner.taken[lane as usize] += len;
        if inner.has_credit_due() && inner.state == State::Open {
            self.schedule(inner);
        }
    }
}

impl Inner {
    fn sendable(&self) -> Result<(), ChannelError> {
        match &self.state {
            State::Open => Ok(()),
            State::Closed => Err(ChannelError::Ended),
            State::Dead(why) => Err(why.clone()),
        }
    }

    fn die(&mut self, why: ChannelError, forget: bool) {
        self.state = State::Dead(why);
        self.out.clear();
        self.taken = [0; 3];
        if forget {
            self.events.clear();
            self.messages = 0;
        }
        self.wake_all();
    }

    fn wake_all(&mut self) {
        wake(&mut self.readers);
        wake(&mut self.senders);
        if matches!(self.state, State::Dead(_)) {
            wake(&mut self.ends);
        }
    }

    fn has_credit_due(&self) -> bool {
        self.state == State::Open
            && LANES.iter().any(|l| self.taken[*l as usize] >= CREDIT_STEP && !self.eof_in[*l as usize])
    }

    fn credit_due(&mut self) -> Option<(Lane, u32)> {
        if !self.has_credit_due() {
            return None;
        }
        let lane = LANES
            .into_iter()
            .find(|l| self.taken[*l as usize] >= CREDIT_STEP && !self.eof_in[*l as usize])?;
        let n = std::mem::take(&mut self.taken[lane as usize]);
        self.window[lane as usize] += n;
        Some((lane, n))
    }

    /// Joins small pieces, so that a peer that sends single bytes cannot make the queue long.
    fn queue_data(&mut self, lane: Lane, data: BytesMut) {
        let reach = if self.events.len() >= MANY_EVENTS { MANY_EVENTS } else { 1 };
        let neighbour = self.events.iter_mut().rev().take(reach).find_map(|e| match e {
            Incoming::Data(l, d) if *l == lane => Some(d),
            _ => None,
        });
        match neighbour {
            Some(last) if last.len() + data.len() <= JOIN || reach > 1 => last.extend_from_slice(&data),
            _ => self.events.push_back(Incoming::Data(lane, data)),
        }
    }
}

/// Takes an event, or as much of it as is asked for.
fn take(events: &mut VecDeque<Incoming>, at: usize, want: Want) -> Option<Incoming> {
    match (want, events.get_mut(at)) {
        (Want::AtMost(most), Some(Incoming::Data(lane, data))) if data.len() > most => {
            Some(Incoming::Data(*lane, data.split_to(most)))
        }
        _ => events.remove(at),
    }
}

const LANES: [Lane; 3] = [Lane::In, Lane::Out, Lane::Err];

fn park(wakers: &mut Vec<Waker>, cx: &Context<'_>) {
    if !wakers.iter().any(|w| w.will_wake(cx.waker())) {
        wakers.push(cx.waker().clone());
    }
}

fn wake(wakers: &mut Vec<Waker>) {
    for w in wakers.drain(..) {
        w.wake();
    }
}
