"""Tasks: what a declaration compiles to, and which declarations are refused where they stand."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import ffsdk as ff
from ffcore.policy import ExecutionPolicy
from ffsdk.fields import text_at
from ffsdk.task import Descriptor, digest

if TYPE_CHECKING:
    from ffsdk import Context


class Order(ff.Payload):
    order_id: str
    cents: int = 0


@dataclasses.dataclass
class Receipt:
    charge: str


def app() -> ff.App:
    return ff.App("memory://unused")


def test_a_task_takes_its_name_and_types_from_the_function() -> None:
    @app().task
    async def checkout(order: Order, ctx: Context) -> Receipt:
        """Charge."""
        return Receipt(order.order_id)

    assert (checkout.name, checkout.lane, checkout.version) == ("checkout", "default", 1)
    assert (checkout.payload_type, checkout.result_type) == (Order, Receipt)
    assert checkout.is_async and checkout.takes_payload and checkout.takes_ctx
    assert checkout.__doc__ == "Charge."


def test_the_plain_function_stays_callable() -> None:
    @app().task
    def double(n: int) -> int:
        return 2 * n

    assert double.fn(4) == 8 and not double.is_async


@pytest.mark.parametrize(
    ("fn", "shape"),
    [(lambda: 1, (False, False)), (lambda payload: 1, (True, False)), (lambda payload, ctx: 1, (True, True))],
)
def test_payload_and_context_may_be_left_out(fn: Any, shape: tuple[bool, bool]) -> None:
    task = app().task(name="t")(fn)
    assert (task.takes_payload, task.takes_ctx) == shape
    assert task.arguments("p", "c") == ("p", "c")[: sum(shape)]


def test_what_cannot_be_called_with_a_payload_and_a_context_is_refused() -> None:
    def three(a: int, b: int, c: int) -> None: ...
    def context_first(ctx: ff.Context) -> None: ...
    def needs_keyword(a: int, *, b: int) -> None: ...
    async def generates(a: int) -> Any:
        yield a

    for fn in (three, context_first, needs_keyword, generates):
        with pytest.raises(ff.InvalidArgument):
            app().task(fn)


def test_payloads_are_checked_against_the_type_before_they_leave() -> None:
    """A dict with a typo would otherwise fail in a worker, at night, with nobody to see it."""

    @app().task
    async def checkout(order: Order) -> None: ...

    assert checkout.decode(checkout.encode_payload(Order("81", 4))) == Order("81", 4)
    assert checkout.decode(checkout.encode_payload({"order_id": "81"})) == Order("81")
    for bad in ({"order": "81"}, Order(81), object(), {"order_id": "81", "cents": float("nan")}):  # type: ignore[arg-type]
        with pytest.raises(ff.InvalidArgument) as refused:
            checkout.encode_payload(bad)
        assert refused.value.code == "invalid_payload" and isinstance(refused.value, ValueError)


def test_a_payload_over_a_mebibyte_is_refused() -> None:
    @app().task
    def store(text: str) -> None: ...

    assert len(store.encode_payload("x" * ((1 << 20) - 2))) == 1 << 20
    with pytest.raises(ff.InvalidArgument) as refused:
        store.encode_payload("x" * (1 << 20))
    assert refused.value.code == "payload_too_large"


def test_a_none_result_is_stored_as_nothing_and_read_back_as_none() -> None:
    @app().task
    def quiet(n: int) -> int | None:
        return None

    assert quiet.encode_result(None) is None and quiet.decode_result(None) is None
    assert quiet.decode_result(quiet.encode_result(4)) == 4


def test_models_of_other_libraries_are_recognised_by_their_methods() -> None:
    """Duck typing: pydantic need not be installed."""

    class Model:
        def __init__(self, n: int) -> None:
            self.n = n

        def model_dump(self, mode: str) -> dict[str, int]:
            return {"n": self.n}

        @classmethod
        def model_validate(cls, value: dict[str, int]) -> Model:
            return cls(value["n"])

    @app().task
    async def inner(models: list[Model]) -> None: ...

    decoded = inner.decode(inner.encode_payload([Model(1), Model(2)]))
    assert [m.n for m in decoded] == [1, 2]


def test_an_annotation_that_is_defined_further_down_resolves_at_first_use() -> None:
    namespace: dict[str, Any] = {"app": app()}
    source = "from __future__ import annotations\n@app.task\ndef later(x: Late) -> Late: return x\n"
    exec(source, namespace)
    task = namespace["later"]
    with pytest.raises(ff.InvalidArgument, match="cannot be resolved"):
        task.encode_payload(1)
    namespace["Late"] = int
    assert task.decode(task.encode_payload(4)) == 4


def test_the_policy_holds_the_defaults_of_the_sdk_and_what_was_given() -> None:
    @app().task(
        timeout=2.5,
        deadline=timedelta(hours=1),
        lease=10,
        requires={"torch>=2.3", "gpu"},
        retry=ff.Retry(on=("upstream",)),
    )
    def train(n: int) -> None: ...

    policy = msgspec.json.decode(train.policy, type=ExecutionPolicy)
    assert policy.timeout_policy is not None and policy.retry_policy is not None
    assert policy.timeout_policy.attempt_timeout_ms == 2_500
    assert policy.timeout_policy.execution_deadline_ms == 3_600_000
    assert policy.lease_ms == 10_000
    assert policy.max_reclaim_count == policy.timeout_policy.max_reclaim_count == 3
    assert (policy.retry_policy.max_retries, policy.retry_policy.retryable_categories) == (3, ["upstream"])
    assert policy.routing_requirements is not None
    assert policy.routing_requirements.required_capabilities == {"gpu", "torch>=2.3"}
    assert b"null" not in train.policy, "it travels with every claim: only what is set"


def test_equal_options_compile_to_equal_bytes() -> None:
    """The store interns policies by digest: an unstable order would fill its table."""
    one, two = app(), app()
    tokens = [f"cap{i}" for i in range(20)]
    first = one.task(name="a", requires=set(tokens))(lambda: None)
    second = two.task(name="b", requires={*tokens[10:], *tokens[:10]})(lambda: None)
    assert first.policy == second.policy
    assert first.policy_for(frozenset()) == app().task(name="c")(lambda: None).policy


def test_bad_options_are_refused_where_the_task_is_declared() -> None:
    bad: list[dict[str, Any]] = [
        {"name": "two words"}, {"lane": "{braces}"}, {"priority": 101}, {"timeout": -1}, {"timeout": float("inf")},
        {"deadline": 0},
        {"lease": 0.001}, {"requires": "gpu"}, {"requires": {"a b"}}, {"fairness": "tenant"}, {"isolation": "fork"},
        {"version": 0},
        {"retry": 3}, {"budget": "two words"}, {"budget": 7}, {"quota": ["api", "api"]}, {"nonsense": 1},
    ]  # fmt: skip
    for options in bad:
        with pytest.raises(ff.InvalidArgument):
            app().task(**options)(lambda payload: None)


def test_budgets_and_quotas_of_a_task_are_published() -> None:
    """Who submits by name must be held by the same limits as who imports the task."""
    budget = ff.Budget("team-a", estimate={"usd": 0.25, "tokens": 500}, on_exceed="suspend")
    task = app().task(name="t", budget=["all", budget], quota=ff.Quota("api", key="payload.tenant"))(lambda: None)
    found = msgspec.json.decode(task.descriptor(), type=Descriptor)
    assert found.budgets == (ff.Budget("all"), budget)
    assert found.quotas == (ff.Quota("api", key="payload.tenant"),)
    assert b"budgets" not in app().task(name="plain")(lambda: None).descriptor()


@pytest.mark.parametrize(
    "options", [{"max_attempts": 0}, {"backoff": -1}, {"factor": 0.5}, {"on": ()}, {"on": "timeout"}]
)
def test_a_retry_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ff.InvalidArgument):
        ff.Retry(**options)


def test_a_name_can_be_declared_once() -> None:
    mine = app()
    mine.task(name="t")(lambda: None)
    with pytest.raises(ff.InvalidArgument, match="declared twice"):
        mine.task(name="t")(lambda: None)


@pytest.mark.parametrize(
    ("payload", "key"),
    [(Order("81", 5), "5"), ({"cents": "t1"}, "t1"), ({"cents": None}, None), ({}, None), (None, None), ("text", None)],
)
def test_the_fairness_key_is_read_from_fields_or_keys(payload: Any, key: str | None) -> None:
    assert text_at("payload.cents", payload) == key


def test_a_fairness_key_that_is_too_long_is_still_one_key_of_its_own() -> None:
    one, two = "a" * 600, "a" * 599 + "b"
    keys = [text_at("payload", value) for value in (one, two, one)]
    assert keys[0] == keys[2] != keys[1] and all(len(key or "") <= 512 for key in keys)


def test_the_digest_tells_task_payload_lane_and_flow_apart() -> None:
    base = ("task", b"payload", "lane", "flow")
    assert len(digest(*base)) == 16 and digest(*base) == digest(*base)
    others = [("tasks", *base[1:]), ("task", b"payloads", *base[2:]), (*base[:2], "lanes", "flow"), (*base[:3], "")]
    assert len({digest(*base), *(digest(*other) for other in others)}) == 5


def test_the_descriptor_tells_others_all_they_need_to_submit() -> None:
    @app().task(lane="checkout", priority=4, requires={"gpu"}, fairness="payload.cents", version=3)
    def checkout(order: Order) -> None: ...

    read = msgspec.json.decode(checkout.descriptor(), type=Descriptor)
    assert (read.name, read.version, read.lane, read.priority) == ("checkout", 3, "checkout", 4)
    assert bytes(read.policy) == checkout.policy and read.fairness == "payload.cents" and read.payload is not None


def test_a_descriptor_too_large_for_the_store_leaves_its_schema_out() -> None:
    wide = msgspec.defstruct("Wide", [(f"a_rather_long_name_of_a_field_{i}", int) for i in range(500)])

    def fn(wide: Any) -> None: ...

    fn.__annotations__["wide"] = wide
    raw = app().task(name="wide")(fn).descriptor()
    assert len(raw) <= 16 << 10 and msgspec.json.decode(raw, type=Descriptor).payload is None
