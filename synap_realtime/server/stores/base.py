"""The contract of a store: room logs, deduplication by id, and acknowledged cursors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ...protocol.cursor import Cursor
from ...protocol.folding import Fold
from ...protocol.job_state import JobEvent, JobRecord
from ...protocol.rooms import Room, is_control_room, is_request_room
from .folds import Conflict

OPTION = "--store (SYNAP_REALTIME_STORE)"
"""The setting that names the store, for error messages."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of each room's log is kept.

    Control rooms (``synap_…``), such as the one of revocations, have limits of their own. No number
    of notifications, and no setting for notifications, can make the server forget a revocation.

    Attributes:
        count: most notifications in a room's log.
        max_age_s: age in seconds after which a notification is deleted.
        request_max_age_s: the same for the rooms of requests.
        dedupe_window_s: seconds within which an id is published once per room.
        max_memory_bytes: about how many bytes all rooms of the memory store may take. Above it, the
            oldest notifications of all rooms are evicted.
        control_age_s: ``max_age_s`` of control rooms.
        control_count: ``count`` of control rooms.
        job_age_s: seconds after its last change within which the record of a job is kept.
        job_count: most records of jobs in a room. Above it, the one that was changed longest ago is
            deleted; those that have ended come first.
    """

    count: int = 1000
    max_age_s: float = 24 * 3600.0
    request_max_age_s: float = 3600.0
    dedupe_window_s: float = 300.0
    max_memory_bytes: int = 512 * 1024 * 1024
    control_age_s: float = 24 * 3600.0
    control_count: int = 100_000
    job_age_s: float = 7 * 24 * 3600.0
    job_count: int = 1000

    def count_of(self, room: Room) -> int:
        """Return the most notifications that the log of a room keeps."""
        return self.control_count if is_control_room(room) else self.count

    def age_s(self, room: Room) -> float:
        """Return for how many seconds a room keeps a notification."""
        if is_control_room(room):
            return self.control_age_s
        return self.request_max_age_s if is_request_room(room) else self.max_age_s


class Publication(NamedTuple):
    """One notification for one room, before it is in the log.

    Attributes:
        room: the room.
        id: the id of the notification.
        text: the notification as a JSON object with at least one member, without ``room`` and
            ``cursor``.
        published_at: ``time.perf_counter`` when the publish arrived at this server; not stored. The
            delivery latency is measured from there; None: from the delivery.
        fold: the member ``fold``, parsed. It is then the last member of ``text``, without
            ``offset``.
        job: the member ``job``, parsed.
    """

    room: Room
    id: str
    text: str
    published_at: float | None = None
    fold: Fold | None = None
    job: JobEvent | None = None


class Entry(NamedTuple):
    """One notification in a room's log.

    Attributes:
        cursor: its position. Offsets grow within a room and are never reused. They do not count the
            notifications of other rooms, so that they reveal nothing about them.
        text: the JSON that every subscriber receives, with ``room`` and ``cursor``.
        size: the length of ``text`` in bytes of UTF-8.
        fold: the member ``fold``, parsed. For ``append``, it always has an offset: 0 for the whole
            text, which a read returns.
        parts: for pieces that were joined on their way to subscribers: the offset in the log and
            the offset in the text of each. A live text that was read as a whole is one part; the
            index of the piece that follows it is not as published.
    """

    cursor: Cursor
    text: str
    size: int
    fold: Fold | None = None
    parts: tuple[tuple[int, int], ...] = ()

    @property
    def held_bytes(self) -> int:
        """What it counts in a backlog: its size, and the memory of its parts."""
        return self.size + _PART_BYTES * len(self.parts) if self.parts else self.size


_PART_BYTES = 120  # measured memory of a part of a joined entry


def make_entry(room: Room, cursor: Cursor, text: str, fold: Fold | None = None) -> Entry:
    """Add a cursor to the text of a publication. (Neither room nor cursor can contain a quote.)"""
    full = f'{text[:-1]},"room":"{room}","cursor":"{cursor.epoch}-{cursor.offset}"}}'
    return Entry(cursor, full, len(full) if full.isascii() else len(full.encode()), fold)


class PublishResult(NamedTuple):
    """The result of a publish. For a duplicate, that of the first publish.

    A piece of a text that is there already is a duplicate, too: it has the present cursor of the
    folded notification, and a count of 0.

    Attributes:
        conflict: why nothing was stored; the members before it mean nothing then.
    """

    id: str
    cursor: Cursor
    broadcast_count: int
    duplicate: bool
    conflict: Conflict | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive entries of a room's log, oldest first.

    Attributes:
        entries: empty if the log ends at the requested position.
        recovered: False if an entry after the requested position may have been deleted, or if the
            position belongs to another log. The page then starts with the oldest retained entry.
            True guarantees that nothing is missing.
        ends_early: whether more entries may follow although there are fewer than requested, because
            these are large: see :data:`folds.MAX_PAGE_BYTES`.
    """

    entries: Sequence[Entry]
    recovered: bool
    ends_early: bool = False


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The size of a store.

    Attributes:
        bytes: memory or disk space that it takes.
        rooms: rooms with a log; None if that is not known.
        evicted: notifications that were deleted early for lack of memory.
    """

    bytes: int
    rooms: int | None
    evicted: int = 0


MAX_JOBS_BYTES = 16 * 1024 * 1024
"""About how many bytes the records of jobs of a room may take, with their texts. Above it, a store
deletes records in the order of :attr:`Retention.job_count`, but not the one just written."""


class JobPosition(NamedTuple):
    """The place of a record in the list of a room's jobs, which is in descending order.

    Attributes:
        started_at: its :attr:`JobRecord.started_at`; empty if there is none.
        job_id: the id of the record.
    """

    started_at: str
    job_id: str


def position_of(record: JobRecord) -> JobPosition:
    """Return the place of a record in the list."""
    return JobPosition(record.started_at or "", record.job_id)


class JobQuery(NamedTuple):
    """Which records of a room are wanted.

    Attributes:
        limit: most records, at least 1.
        statuses: their statuses; empty: all.
        type: their type; None: all.
        after: where the last page ended; None: from the newest.
    """

    limit: int
    statuses: frozenset[str] = frozenset()
    type: str | None = None
    after: JobPosition | None = None

    def matches(self, status: str, type: str) -> bool:
        """Return whether a record is wanted, wherever it is in the list."""
        return (not self.statuses or status in self.statuses) and self.type in (None, type)


class JobSnapshot(NamedTuple):
    """A record, and the position of the log at which it is valid.

    Attributes:
        record: the record, with the text of its run; None if there is none.
        cursor: the entries after it, and no others, may have changed the record since.
    """

    record: JobRecord | None
    cursor: Cursor


class JobPage(NamedTuple):
    """Records of a room, newest first by their ``started_at``.

    A page ends with the record by which it reaches :data:`folds.MAX_PAGE_BYTES`.

    Attributes:
        records: without texts.
        cursor: see :attr:`JobSnapshot.cursor`.
        more: whether other records follow.
    """

    records: Sequence[JobRecord]
    cursor: Cursor
    more: bool


MAX_DEVICES = 64
"""Most devices of a room whose acknowledged cursors are kept. Above it, the device that has not
connected for longest is removed."""

DEVICE_AGE_S = 30 * 86_400.0
"""A device that has not connected for this time is removed."""

DeliveryHandler = Callable[[Room, Entry, float | None], int]
"""Delivers an entry to a room's subscribers, without blocking. Returns how many accepted it. Never
raises. The third argument is :attr:`Publication.published_at`; None if another server of a
:class:`ClusterStore` accepted the publish."""


GapHandler = Callable[[Room, Cursor], None]
"""Reports that entries of a room may be lost, without blocking. Deliveries continue after the
cursor, perhaps in another epoch. Never raises."""


def deliver_to_nobody(room: Room, entry: Entry, published_at: float | None) -> int:  # noqa: ARG001 - a handler's
    """Handle the deliveries of a store that no server has subscribed to."""
    return 0


def ignore_gap(room: Room, position: Cursor) -> None:
    """Handle the gaps of a store that no server has subscribed to."""


class LogStore(Protocol):
    """The logs of all rooms.

    It guarantees:

    - *Atomicity*: if a publish fails, none of its publications is in a log. An entry, its offset
      and its id are stored together.
    - *Order*: the offsets of a room grow in the order of the publish calls.
    - *Offset 0* comes before every entry and is the position of none. A room without publications
      has an empty log; reading it neither creates it nor fails.
    - *Folding*: of the publications with the same ``fold.key``, a room's log has one entry, at the
      position of the last one, until a final one closes the key: see ``folds.py``. It counts as
      published when the last one was. A publication with ``fold.offset`` that is not final is
      recognized by its offset: its id is not kept.
    - *Jobs*: what a publication with ``job`` changes beside the log, a :class:`JobStore` stores
      together with the entry. A publication that is a duplicate or conflicts changes nothing.
    """

    def earliest(self) -> Cursor:
        """Return the position before every entry: offset 0."""
        ...

    async def head(self, room: Room) -> Cursor:
        """Return a position that is not before any delivered entry of the room; never offset 0.

        It must not reveal how much, or when, is published to other rooms.

        Raises:
            StoreUnavailableError: the log cannot be read now.
        """
        ...

    async def publish(self, publications: Sequence[Publication]) -> Sequence[PublishResult]:
        """Store publications, then deliver each once. Return one result for each, in order.

        Within the dedupe window, an ``id`` is stored and delivered once per room: later calls
        return the first result with ``duplicate``. Cancelling the call does not undo it.

        Raises:
            StoreUnavailableError: nothing was stored and nothing was delivered.
        """
        ...

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        """Return up to ``limit`` entries after a position. ``limit`` is at least 1.

        Raises:
            StoreUnavailableError: the log cannot be read now.
        """
        ...


class Broker(Protocol):
    """Brings each new entry to this server, whichever server accepted the publish."""

    def subscribe(self, handler: DeliveryHandler, on_gap: GapHandler = ignore_gap) -> None:
        """Call a handler with each new entry of every room that was joined, once.

        Called at most once, before any other method, possibly outside of the event loop. Without a
        handler, entries are stored and delivered to nobody.

        Args:
            on_gap: called when entries of a room may have been lost, and cannot be read any more.
        """
        ...

    async def join(self, room: Room) -> None:
        """Count a subscriber of a room at this server. Call :meth:`leave` when it has ended.

        From the return on, each new entry of the room is delivered to this server. A store of a
        single server delivers the entries of all rooms.

        Raises:
            StoreUnavailableError: the room cannot be joined now.
        """
        ...

    def leave(self, room: Room) -> None:
        """Count a subscriber as ended, without blocking."""
        ...


class AckStore(Protocol):
    """The acknowledged cursors of rooms and devices.

    They take effect immediately but are stored later: a crash may lose those of the last second.
    """

    async def get_ack(self, room: Room, device: str | None = None) -> Cursor | None:
        """Return the acknowledged cursor of a device, or of the room.

        Args:
            room: the room.
            device: None, and a device that is not registered, stand for the room: the furthest
                cursor of all its subscribers.

        Returns:
            None if no subscriber has received anything.

        Raises:
            StoreUnavailableError: the cursor cannot be read now.
        """
        ...

    def register_device(self, room: Room, device: str, position: Cursor) -> None:
        """Register a device that has received everything up to a position.

        An unregistered device would later start at the room's acknowledged cursor and miss what
        only another device has received. At most :data:`MAX_DEVICES` are registered per room, each
        for :data:`DEVICE_AGE_S` after it last connected.
        """
        ...

    def ack(self, room: Room, position: Cursor, device: str | None = None) -> None:
        """Advance the acknowledged cursors of the room and of a device, without blocking.

        An earlier position than the present one has no effect.
        """
        ...


class Store(LogStore, Broker, AckStore, Protocol):
    """All that a room server keeps. One instance serves one room server, on one event loop.

    The delivery handler is called in the order of the log, after the entry was stored: what a
    subscriber has received is in the log.

    A store logs once when it becomes unavailable and once when it recovers. Its callers do not.
    """

    @property
    def description(self) -> str:
        """One line for the operator: the kind of store, and what survives a crash."""
        ...

    async def check(self) -> None:
        """Check whether a publish would succeed now.

        Raises:
            StoreUnavailableError: it would fail.
        """
        ...

    async def usage(self) -> StoreStats:
        """Return the size of the store.

        Raises:
            StoreUnavailableError: the size cannot be read now.
        """
        ...

    async def close(self) -> None:
        """Finish pending writes and release all resources. No call may follow."""
        ...


@runtime_checkable
class JobStore(Protocol):
    """A store that keeps the records of jobs. See PROTOCOL.md, "Job state".

    Each room, except control rooms, has a record for each job that a publication with ``job`` in
    this room was about, by :attr:`JobEvent.job_id`. It is the result of :func:`fold_job` over these
    publications, in the order of the log, and outlives their entries.

    A publication whose event is an ending also ends the keys of its run
    (:attr:`JobEvent.run_keys`) in this room, whether it changes the record or not:

    - Those that the log has are closed and get the attempt ``folding.MAX_ATTEMPT``. Their entries
      stay. If the record was changed, it keeps the text of :func:`text_key`.
    - As long as the record is of this run and has ended, every write to them is the conflict
      :data:`folds.RUN_HAS_ENDED`, also when the log has no such key.
    """

    async def get_job(self, room: Room, job_id: str) -> JobSnapshot:
        """Return the record of a job.

        Raises:
            StoreUnavailableError: it cannot be read now.
        """
        ...

    async def list_jobs(self, room: Room, query: JobQuery) -> JobPage:
        """Return the records of a room that a query wants.

        Raises:
            StoreUnavailableError: they cannot be read now.
        """
        ...


def needs_task(store: Store) -> bool:
    """Return whether the methods of a store may await something that requires a current task.

    ``asyncio.timeout()`` does, for example. The class of a store that never does has
    ``runs_without_task = True``. It is not inherited, because a subclass may await something else.
    """
    return not vars(type(store)).get("runs_without_task", False)


def reads_immediately(store: Store) -> bool:
    """Return whether a store reads logs without waiting, so that sharing a read would cost more.

    The class of such a store has ``reads_immediately = True``. It is not inherited.
    """
    return bool(vars(type(store)).get("reads_immediately", False))


@runtime_checkable
class ClusterStore(Store, Protocol):
    """A store that several servers share. A publish at one reaches the subscribers of all.

    All servers see the same epoch. *Order* holds over all servers: the delivery handler of each
    server is called with each entry of a room once, in the order of offsets and without a gap,
    whichever server accepted the publish. A server that was disconnected from the store receives
    what it has missed. ``PublishResult.broadcast_count`` counts the subscribers of all servers, if
    the store knows them.
    """

    @property
    def is_shared(self) -> bool:
        """Always True: it distinguishes the store from those that serve one server."""
        ...


@dataclass(slots=True)
class LinkStats:
    """How the connections of a server to a shared store work: since its start, unless noted.

    Attributes:
        unconfirmed_subscriptions: rooms with subscribers whose entries do not arrive now.
        deaf_s: for how many seconds entries did not arrive, added up over all connections.
        heals: how often entries that did not arrive were read from a log.
        gaps: how often the subscribers of a room were informed that entries may be lost.
        call_reconnects: connections for calls that were replaced.
        message_reconnects: connections for messages that were replaced.
        failovers: how often a connection has reached another server than before, or another run of
            it, so that logs get a new epoch.
    """

    unconfirmed_subscriptions: int = 0
    deaf_s: float = 0.0
    heals: int = 0
    gaps: int = 0
    call_reconnects: int = 0
    message_reconnects: int = 0
    failovers: int = 0


@runtime_checkable
class LinkedStore(Protocol):
    """A store that is reached over connections, which may fail."""

    def link_stats(self) -> LinkStats:
        """Return how the connections work."""
        ...


class Survey(NamedTuple):
    """What the other servers of a store have answered to a question.

    Attributes:
        answers: the answer of each, by the id of the server.
        asked: how many others there are; None if the store cannot list them now.
    """

    answers: Mapping[str, Mapping[str, Any]]
    asked: int | None


SurveyHandler = Callable[[str, Mapping[str, Any]], Mapping[str, Any] | None]
"""Answers a question, given its name and its arguments, without blocking. Returns None if it does
not know the question, which a newer server may have asked."""


@runtime_checkable
class SurveyStore(Protocol):
    """A store by which each server can ask all others that share it."""

    def answer_surveys(self, handler: SurveyHandler) -> None:
        """Answer the questions of other servers. Called at most once, before any other method."""
        ...

    async def survey(self, question: str, arguments: Mapping[str, Any]) -> Survey:
        """Ask all other servers, and wait for their answers for about a second.

        It does not raise: answers that are missing are missing in the result.

        Args:
            question: its name, which the handlers of the others know.
            arguments: what JSON can express.
        """
        ...


class RateDemand(NamedTuple):
    """What a caller takes from one rate, which allows a burst of one second's amount.

    Attributes:
        name: the name of the rate.
        per_s: its amount a second.
        cost: what is needed.
        ahead: what is taken in addition if there is enough, for later.
    """

    name: str
    per_s: int
    cost: int
    ahead: int


class RateGrant(NamedTuple):
    """The answer to demands.

    Attributes:
        waits_s: for each rate, how long to wait, in seconds; 0 if it has enough. Unless all are 0,
            nothing was taken.
        is_ahead: whether ``ahead`` was taken, too, of all rates.
    """

    waits_s: Sequence[float]
    is_ahead: bool


@runtime_checkable
class SharedRateStore(Protocol):
    """A store that keeps rates of callers which all servers share."""

    async def take_rates(self, caller: str, demands: Sequence[RateDemand]) -> RateGrant:
        """Take from several rates of a caller: from all or from none.

        Raises:
            StoreUnavailableError: whether something was taken is not known.
        """
        ...


class UserPresence(NamedTuple):
    """A user who is present in a room, at one server or at several.

    Attributes:
        connections: how many the user has; 0 within the grace period after the last one.
        devices: the names of the devices, sorted.
    """

    connections: int
    devices: tuple[str, ...]

    def merged_with(self, other: UserPresence) -> UserPresence:
        """Return the presence at the servers of both."""
        devices = tuple(sorted({*self.devices, *other.devices}))
        return UserPresence(self.connections + other.connections, devices)


class RoomPresence(NamedTuple):
    """The presence in a room.

    Attributes:
        connections: all, including those without a user.
        users: by id.
    """

    connections: int
    users: Mapping[str, UserPresence]


PresenceHandler = Callable[[Mapping[str, UserPresence | None]], None]
"""Receives the changed users of a room, merged over all other servers, without blocking; None: the
user is present at none of them."""


@runtime_checkable
class PresenceStore(Protocol):
    """A store by which servers share who is present in their rooms.

    Each server reports its own users, and receives those of all others. None of the methods fails
    because the store is unavailable, except :meth:`read_presence`: what was reported is stored as
    soon as possible, and watchers keep the last state until then.
    """

    def report_presence(self, room: Room, user: str, presence: UserPresence | None) -> None:
        """Replace what this server has reported of a user, without blocking.

        The store repeats it whenever it may have lost it, and removes it if this server fails.
        """
        ...

    def end_presence(self, after_s: float) -> None:
        """Report nothing more: the server stops. Remove what it has reported after this time."""
        ...

    async def read_presence(self, room: Room) -> RoomPresence:
        """Return the presence at all other servers.

        Raises:
            StoreUnavailableError: it cannot be read now.
        """
        ...

    def watch_presence(self, room: Room, handler: PresenceHandler) -> None:
        """Call a handler with all users at other servers, as soon as possible, then with changes.

        The first call may be empty. A room has one handler at a time.
        """
        ...

    def unwatch_presence(self, room: Room) -> None:
        """Call the handler of a room no more."""
        ...


@runtime_checkable
class UserConnectionStore(Protocol):
    """A store by which servers share how many connections each user has."""

    async def acquire_connection(self, user: str, most: int) -> bool:
        """Count a connection of a user. Call :meth:`release_connection` when it has ended.

        Connections at several servers that begin at the same time never exceed the limit. The
        store counts the connections of a server again whenever it may have lost them, and removes
        them if the server fails.

        Returns:
            False if the user already has ``most`` connections at all servers; it is not counted.

        Raises:
            StoreUnavailableError: it cannot be counted now.
        """
        ...

    def release_connection(self, user: str) -> None:
        """Count a connection as ended, without blocking."""
        ...
