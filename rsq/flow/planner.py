"""From a canvas to a plan: which calls there are, what each waits for and takes, and the handles that tell of them.

Each part of a canvas is planned by what stands before it, `_Before`, and gives what it came to, `After`: so a chain
hands one to the next, and a group the same one to each of its members.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rsq.calls.message import NO_META, Message, new_id
from rsq.calls.plan import FAIL, Call, Plan
from rsq.canvas.data import DEEPEST
from rsq.canvas.signature import Chain, Chord, Group, Signature
from rsq.errors import SettingsError
from rsq.flow.late import Awaited, first_sent
from rsq.flow.numbering import Draft, numbered
from rsq.result import AsyncResult
from rsq.result_group import GroupResult
from rsq.result_member import MemberResult
from rsq.task import Task


@dataclass(frozen=True)
class Planned:
    """A canvas that can be started.

    plan    None where there is nothing to call: a group of nothing
    result  the handle that its caller gets
    """

    plan: Plan | None
    result: AsyncResult[Any]


@dataclass(frozen=True)
class _Before:
    """What stands before a part.

    numbers  the nodes that it waits for
    takes    the shape of what it takes; None = nothing
    parent   the handle
    header   the calls of a group that it follows: its own errbacks hear of them, too
    policy   where one of them does not succeed, see `rsq.calls.plan`
    """

    numbers: Sequence[int] = ()
    takes: Any = None
    parent: AsyncResult[Any] | None = None
    header: Sequence[int] = ()
    policy: str = FAIL


nothing_before = _Before()


def before_it(numbers: Sequence[int], takes: Any, policy: str) -> _Before:
    """These nodes, and the shape of what it takes of them."""
    return _Before(numbers, takes, policy=policy)


@dataclass(frozen=True)
class After:
    """What a part came to.

    ends    the nodes that have to be over for it to be over
    shape   of its value
    handle  of its result
    told    for each call in it that can fail: the id of which an errback of the whole is told then
    """

    ends: Sequence[int]
    shape: Any
    handle: AsyncResult[Any]
    told: Sequence[tuple[int, str]]


class Planner:
    """Plans one canvas.

    app  whose tasks are called, and to which server
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._drafts: list[Draft] = []
        self._ids: set[str] = set()
        self._members: list[MemberResult[Any]] = []
        self._root: str | None = None
        self._result_ttl_ms = 0
        self._most = app.client.settings.max_flow_calls

    def plan(self, signature: Signature[Any]) -> Planned:
        """Raises SettingsError, and what making a message raises."""
        after = self._part(signature, nothing_before, 0)
        result = after.handle
        if not self._drafts:
            return Planned(None, result)
        for place in after.ends:
            self._drafts[place].sink = True
        plan = self._planned(result.id, repr(signature)[:200])
        assert isinstance(result, (GroupResult, MemberResult))
        result.flow, result.whole = result.id, True
        return Planned(plan, result)

    def _planned(self, flow_id: str, text: str) -> Plan:
        """All of it; the handles know their places then."""
        nodes, numbers = numbered(self._drafts)
        for member in self._members:
            member.flow, member.last = flow_id, self._drafts[member.number].sink
            member.number = numbers[member.number]
        expires_ms = self._app.client.settings.flow_expires_ms
        return Plan(flow_id, nodes, text, max(1, self._result_ttl_ms), expires_ms)

    # -- the parts

    def _part(self, signature: Signature[Any], before: _Before, depth: int) -> After:
        if depth > DEEPEST:
            raise SettingsError(f"more than {DEEPEST} canvases and callbacks stand inside each other")
        if isinstance(signature, Group):
            return self._group(signature, before, depth)
        if isinstance(signature, Chain):
            return self._chain(signature, before, depth)
        return self._call(signature, before, depth)

    def _call(self, signature: Signature[Any], before: _Before, depth: int) -> After:
        takes = None if signature.immutable else before.takes
        call = self._made(signature, takes, bool(before.numbers))
        number = self._add(Draft(call, len(before.numbers), takes, policy=before.policy))
        for earlier in before.numbers:
            self._drafts[earlier].outs.append(number)
        handle = self._handle(signature, call.message, number, before.parent)
        after = After((number,), number, handle, ((number, handle.id),))
        handle.links = self._callbacks(signature, after, depth)
        for errback in signature.errbacks:
            self._tell(errback, [*after.told, *((earlier, handle.id) for earlier in before.header)], depth)
        return after

    def _chain(self, chain: Chain[Any], before: _Before, depth: int) -> After:
        if isinstance(chain, Chord) and chain.body is None:
            raise SettingsError("this chord has no body: chord(header, body), or chord(header)(body)")
        heard: list[tuple[int, str]] = []
        headers: list[int] = []
        step, *others = chain.tasks
        after = self._part(step, before, depth + 1)
        for following in others:
            header = [number for number, _ in after.told] if isinstance(step, Group) else []
            headers += header
            heard += () if header else after.told
            step, before = following, _Before(after.ends, after.shape, after.handle, header)
            after = self._part(step, before, depth + 1)
            if isinstance(before.parent, MemberResult):
                before.parent.next = after.handle
        # What follows a group fails with it: an errback hears of that as of the chain itself.
        heard += [(number, after.handle.id) for number in headers]
        for errback in chain.errbacks:
            told = [*heard, *((number, after.handle.id) for number in before.header)]
            if isinstance(chain, Chord) and isinstance(step, Group):
                for number, task_id in after.told:  # each member of such a body fails for itself
                    self._tell(errback, [*((earlier, task_id) for earlier, _ in told), (number, task_id)], depth)
            else:
                self._tell(errback, [*told, *after.told], depth)
        return replace(after, told=[*heard, *after.told])

    def _group(self, group: Group[Any], before: _Before, depth: int) -> After:
        if len(before.numbers) > 1 and len(group.tasks) > 1:
            before = replace(before, numbers=(self._join(before.numbers, before.policy),))
        ends: list[int] = []
        shape: list[Any] = []
        handles: list[AsyncResult[Any]] = []
        told: list[tuple[int, str]] = []
        for member in group.tasks:
            after = self._part(member, before, depth + 1)
            ends += after.ends
            told += after.told
            if isinstance(member, Group) and isinstance(after.handle, GroupResult):
                shape += after.shape
                handles += after.handle.results
            else:
                shape.append(after.shape)
                handles.append(after.handle)
            for errback in group.errbacks:
                self._tell(errback, after.told, depth)
        group_id = self._own(group.options.get("task_id") or group.id)
        result = GroupResult[Any](self._app.client, group_id, handles, before.parent)
        whole = After(ends or before.numbers, shape, result, told)
        result.links = self._callbacks(group, whole, depth)
        return whole

    def _callbacks(self, signature: Signature[Any], after: After, depth: int) -> tuple[AsyncResult[Any], ...]:
        """Plan what is to follow it; gives the handles."""
        before = _Before(after.ends, after.shape, after.handle)
        if len(signature.links) > 1 and len(after.ends) > 1:
            before = replace(before, numbers=(self._join(after.ends),))
        parts = [self._part(link, before, depth + 1) for link in signature.links]
        for place in [place for part in parts for place in part.ends]:
            self._drafts[place].sink = True  # a callback that died keeps the flow from having succeeded
        return tuple(part.handle for part in parts)

    def _tell(self, errback: Signature[Any], told: Iterable[tuple[int, str]], depth: int) -> None:
        """Have this errback called once any of these calls fails, and told of the id that stands beside it.

        An immutable one is told nothing.
        """
        if isinstance(errback, (Chain, Group)):
            raise SettingsError(
                f"an errback is the signature of one task, not {errback!r}: let that task start the rest"
            )
        if errback.links or errback.errbacks:
            raise SettingsError(f"an errback has no callbacks of its own: {errback!r}")
        number = self._add(Draft(self._made(errback, None, False, errback=True), errback=True))
        for earlier, task_id in told:
            self._drafts[earlier].errbacks.append((number, "" if errback.immutable else task_id))

    def _join(self, numbers: Sequence[int], policy: str = FAIL) -> int:
        """A node between many and many."""
        join = self._add(Draft(None, len(numbers), policy=policy))
        for number in numbers:
            self._drafts[number].outs.append(join)
        return join

    def _add(self, draft: Draft) -> int:
        if len(self._drafts) >= self._most:
            raise SettingsError(
                f"a flow has {self._most:,} calls at most (max_flow_calls), and this one has more: start it in several "
                "parts"
            )
        self._drafts.append(draft)
        return len(self._drafts) - 1

    def _own(self, chosen: str | None) -> str:
        """An id, and nobody else's in this canvas."""
        task_id = chosen or new_id()
        if task_id in self._ids:
            raise SettingsError(f"the task id {task_id!r} stands twice in this canvas")
        self._ids.add(task_id)
        return task_id

    def _handle(
        self, signature: Signature[Any], message: Message, number: int, parent: AsyncResult[Any] | None
    ) -> MemberResult[Any]:
        options = self._task_of(signature).options
        ignored = message.meta.get("ignore_result", options.ignore_result)
        self._result_ttl_ms = max(
            self._result_ttl_ms, int(message.meta.get("result_expires", options.result_expires) * 1000)
        )
        handle = MemberResult[Any](self._app.client, message.id, message.queue, ignored)
        handle.number, handle.parent = number, parent
        self._members.append(handle)
        return handle

    # -- the calls

    def _task_of(self, signature: Signature[Any]) -> Task[..., Any]:
        """Its task as its own app knows it, with the options there. Raises SettingsError where that is elsewhere."""
        owner: Any = signature.app or self._app
        its, own = owner.client.settings, self._app.client.settings
        if (its.url, its.namespace) != (own.url, own.namespace):
            raise SettingsError(
                f"{signature.task} belongs to app {owner.name!r}, and the canvas to app {self._app.name!r}, which has "
                "another server or namespace: start it by itself, in a task of this canvas"
            )
        task: Task[..., Any] = owner.task_by_name(signature.task)
        return task

    def _made(self, signature: Signature[Any], takes: Any, waits: bool, errback: bool = False) -> Call:
        """The call of a signature. Its arguments are checked as far as they are known."""
        task = self._task_of(signature)
        options = task.call_options(signature.options)
        if options.debounce is not None or options.on_duplicate == "replace":
            raise SettingsError(
                f"{signature.task} has debounce or on_duplicate='replace', which no call in a canvas can "
                "have: its place belongs to one call; set on_duplicate='ignore', or start it by itself in a task"
            )
        expires_ms, whole = None, options
        late = waits or errback
        if late and isinstance(options.expires, (int, float)) and options.expires > 0:  # it counts from the release
            expires_ms, options = int(options.expires * 1000), replace(options, expires=None)
        looks: list[str] = []
        one = Awaited(looks)
        awaited: Sequence[Awaited] | Mapping[str, Awaited] = () if takes is None else (one,)
        if isinstance(takes, Mapping):
            awaited = dict.fromkeys(takes, one)
        if errback and not signature.immutable:
            awaited = (one,) * (3 if task.fits(len(signature.args) + 3) else 1)
        try:
            message, placement = task.made(signature.args, signature.kwargs, options, awaited)
        except Exception:
            if not looks:
                raise
        if looks:
            if errback:
                raise SettingsError(
                    f"a dedupe_key or a route of {signature.task} looks at what an errback is told, which is not known "
                    "yet: give the signature a queue or a dedupe_key that is"
                )
            return self._made(first_sent(signature, task, whole), takes, waits)
        message.id = self._own(options.task_id or signature.id or message.id)
        if placement.unique:
            placement = replace(placement, unique=False)  # the plan's id answers for it
        meta = dict(message.meta)
        if waits or errback:
            meta.pop("parent", None)  # who releases it is its parent
        if self._root is None:
            self._root = meta.get("root", message.id)
        elif waits or errback:
            meta["root"] = self._root
        message.meta = meta or NO_META
        return Call(message, placement, expires_ms)
