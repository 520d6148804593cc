"""What a node gets from those before it: joined as the JSON it is, fitted to the handler's annotation."""

from __future__ import annotations

from typing import Any, cast

import pytest

import ffsdk as ff
from ffcore.args import Args
from ffcore.contracts.batch import Input, Inputs
from ffcore.contracts.dependency import ReadUpstreamsArgs, Upstream, Upstreams
from ffcore.errors import InvalidArgument
from ffcore.ids import ExecutionId
from ffcore.states import PublicState
from ffsdk import inputs as module
from ffsdk.inputs import fit, taken

app = ff.App("memory://inputs")


class Page(ff.Payload):
    url: str


@app.task
async def one(page: Page) -> None: ...


@app.task
async def some(pages: list[Page]) -> None: ...


@app.task
async def maybe(pages: list[Page | None]) -> None: ...


@app.task
async def blobs(found: list[bytes]) -> None: ...


@app.task
async def blob(found: bytes) -> None: ...


@app.task
async def anything(found: Any) -> None: ...


@app.task
async def nothing() -> None: ...


A, B = Input("", b'{"url":"a"}'), Input("json", b'{"url":"b"}')
RAW = Input("octets", b"\x00\xff")


@pytest.mark.parametrize(
    ("task", "shape", "items", "expected"),
    [
        (one, "1", [A], Page("a")),
        (some, "*", [A, B], [Page("a"), Page("b")]),
        (maybe, "*", [A, None, B], [Page("a"), None, Page("b")]),
        (maybe, "*", [A, Input("", None)], [Page("a"), None]),
        (anything, "1", [A], {"url": "a"}),
        (anything, "*", [A], [{"url": "a"}]),
        (anything, "1", [None], None),
        (anything, "1", [], None),
        (anything, "*", [], []),
        (some, "1", [A], [Page("a")]),
        (one, "*", [B], Page("b")),
        (nothing, "*", [A, B], None),
        (blob, "1", [RAW], b"\x00\xff"),
        (anything, "1", [RAW], b"\x00\xff"),
        (blobs, "*", [RAW, Input("", b'"YQ=="')], [b"\x00\xff", b"a"]),
    ],
    ids=str,
)
def test_the_annotation_decides_what_arrives(task: Any, shape: str, items: list[Any], expected: Any) -> None:
    raw, payload = fit(task, taken(Inputs(shape, True, items)))
    assert payload == expected
    if task is not anything or RAW not in items:
        assert task.decode(raw) == expected, "a handler in a child process decodes it there"


@pytest.mark.parametrize(
    ("task", "shape", "items"),
    [
        (some, "*", [A, Input("", b"7")]),
        (some, "*", [A, None]),
        (one, "*", [A, B]),
        (one, "1", [Input("", b"[]")]),
        (one, "1", [None]),
        (one, "1", [RAW]),
        (anything, "1", [Input("", b"no json")]),
    ],
)
def test_what_does_not_fit_is_refused(task: Any, shape: str, items: list[Any]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        fit(task, taken(Inputs(shape, True, items)))
    assert refused.value.code == "invalid_payload"


# ---- page by page


def row(order: int, state: str, edge_state: str = "S", result: bytes | None = b"1", kind: str = "s") -> Upstream:
    return Upstream(
        order, ExecutionId(f"{{fp:0}}:{order}"), "t", "key" if order == 1 else "", kind, state, edge_state,
        result is not None, "", result or b"",
    )  # fmt: skip


class Store:
    """Answers pages."""

    def __init__(self, *pages: list[Upstream]) -> None:
        self.pages, self.asked = list(pages), list[int]()

    async def call(self, args: Args[Any]) -> Any:
        assert isinstance(args, ReadUpstreamsArgs)
        self.asked.append(args.after)
        rows = self.pages.pop(0)
        return Upstreams(rows, rows[-1].order if self.pages else 0)


class Job:
    """As much of a claimed job as is read here."""

    execution_id = ExecutionId("{fp:0}:00000000-0000-7000-8000-000000000000")
    flow_id: str | None = "flow"

    def __init__(self, shape: str = "*") -> None:
        self.inputs = Inputs(shape, False, [])


class Held:
    def __init__(self, shape: str = "*") -> None:
        self.job = Job(shape)


async def read(store: Store, shape: str = "*") -> list[bytes]:
    return (await module.read(cast("Any", store), cast("Any", Held(shape)))).items


async def test_what_is_too_much_for_a_claim_is_read_page_by_page() -> None:
    store = Store([row(1, "completed"), row(2, "completed", result=b"2")], [row(3, "completed", result=None)])
    assert await read(store) == [b"1", b"2", b"null"]
    assert store.asked == [0, 2]


async def test_where_all_were_awaited_each_has_its_place() -> None:
    store = Store([row(1, "completed"), row(2, "failed", result=None), row(3, "completed", result=b"3")])
    assert await read(store) == [b"1", b"null", b"3"]


async def test_where_some_were_enough_only_these_arrive() -> None:
    """Late ones, impossible ones, and what the job has spawned itself are no inputs."""
    store = Store([
        row(1, "failed", "I", None), row(2, "completed", "S", b"2"), row(3, "completed", "s", b"3"),
        row(4, "failed", "S", None), row(5, "completed", "S", b"5", kind="c"), row(6, "active", "u", None),
    ])  # fmt: skip
    assert await read(store) == [b"2"]


async def test_an_upstream_that_runs_again_counts_with_the_result_it_had() -> None:
    assert await read(Store([row(1, "active", result=b"1"), row(2, "completed", "I", b"2")])) == [b"1"]


async def test_asking_for_upstreams_shows_all_of_them() -> None:
    class Durable:
        held = Held()
        host = type("Host", (), {"backend": Store([
            row(1, "completed", result=b'{"url":"a"}'), row(2, "failed", result=None), row(3, "blocked", "u", None),
            row(4, "completed", kind="c"), row(5, "completed", result=b""),
        ])})  # fmt: skip

        def check(self) -> None: ...

    ctx = type("Ctx", (), {"durable": Durable()})
    found = await module.upstreams(cast("Any", ctx))
    assert [(one.key, one.state.value, one.value) for one in found] == [
        ("key", "completed", {"url": "a"}), (None, "failed", None), (None, "waiting_children", None),
        (None, "completed", None),
    ]  # fmt: skip
    assert isinstance(found[0], ff.Upstream) and found[0].state is PublicState.COMPLETED
    Durable.held.job.flow_id = None
    assert await module.upstreams(cast("Any", ctx)) == [], "no member of a flow: nothing is asked"
