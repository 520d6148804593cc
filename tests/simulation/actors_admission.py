"""Who makes the calls of admission: clients with budgets, quotas and unique keys, workers that ask before they begin, a
post office that loses, repeats and shuffles, operators, and a ticker that also fires schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

import ffcore.contracts as c
from ffcore import ids
from ffcore.args import Args
from ffcore.contracts.budget import ReserveRow, SpendRow, budget_changes
from tests.simulation.actors import Talk, ask, setting
from tests.simulation.ledger import Line, lines_of
from tests.simulation.rules_admission import set_of
from tests.simulation.scene import ADMITTED, POLICIES, TASKS, TOKENS, TTL, Scene, sets_for
from tests.simulation.world import BP, FP, QP, Refusal

BUDGETS: list[Any] = [f"{BP}:{ids.uuid8(b'budget %d' % n)}" for n in range(3)]
QUOTAS: list[Any] = [f"{QP}:{ids.uuid8(b'quota %d' % n)}" for n in range(3)]
KEYS: list[Any] = [f"{QP}:{ids.uuid8(b'unique %d' % n)}" for n in range(4)]
SCHEDULES: list[Any] = [f"{FP[n % 2]}:{ids.uuid8(b'schedule %d' % n)}" for n in range(3)]
GONE: list[Any] = [f"{BP}:{ids.uuid8(b'nothing')}", f"{QP}:{ids.uuid8(b'nothing')}"]
UNUSED: Any = f"{QP}:{ids.uuid8(b'unused')}"
"""A quota that comes and goes; nothing asks for it."""
AMOUNTS = ["units=1", "units=2.5", "units=4,usd=0.25", "usd=0.5", "-", "units=30", "odd=1,units=1"]


# ---- creating and deleting them --------------------------------------------------------------------------


def _budget(scene: Scene, n: int) -> Args[Any]:
    return c.CreateBudgetArgs(
        budget_id=BUDGETS[n], scope_type="lane", scope_id="m", enforcement_mode="refuse" if n == 2 else "record",  # type: ignore[arg-type]
        on_hard_limit="hold", on_soft_limit="warn", reset_interval_ms=[0, 4_000, 9_000][n],
        dimensions=["units", "usd"], hard_limits=[scene.rng.choice([8, 20, 20]), 2], soft_limits=[6, 0],
    )  # fmt: skip


def _quota(scene: Scene, n: int) -> Args[Any]:
    rate, most = [(4, 0), (0, 2), (6, 3)][n]
    return c.CreateQuotaPolicyArgs(
        quota_policy_id=QUOTAS[n], window_seconds=2 if rate else 0, max_requests_per_window=rate, max_concurrent=most,  # type: ignore[arg-type]
    )  # fmt: skip


def operator(scene: Scene, name: str) -> Talk:
    rng = scene.rng
    for n in range(3):
        yield from ask(_budget(scene, n))
        yield from ask(_quota(scene, n))
    yield from setting(scene, f"weights:{ADMITTED}", {"t1": "3"})
    while True:
        draw = rng.random()
        if draw < 0.08:
            yield from _used_up(scene)
        elif draw < 0.16:
            yield from setting(scene, "lane:a", {"state": rng.choice(["active", "draining"])})
        elif draw < 0.2:
            yield from setting(scene, f"lane:{ADMITTED}", {"quota": rng.choice(["", "", "", QUOTAS[1], QUOTAS[2]])})
        elif draw < 0.24:
            weights = {rng.choice(["t1", "t2"]): rng.choice(["2", "0.5", "3", "4", ""])}
            yield from setting(scene, f"weights:{rng.choice(['a', ADMITTED])}", weights)
        call = rng.choice(OPERATIONS)(scene)
        yield from ask(call)
        if isinstance(call, c.RaiseBudgetArgs) and rng.random() < 0.5:
            yield from ask(call)  # the approval comes twice
        if isinstance(call, c.CheckAdmissionArgs):
            for _ in range(rng.choice([0, 0, 5])):
                yield from ask(msgspec.structs.replace(call, execution_id=scene.any_id()))
        yield None


def _used_up(scene: Scene) -> Talk:
    """To the last unit, and no further."""
    id: Any = scene.rng.choice(BUDGETS)
    read = yield from ask(c.ReadBudgetArgs(budget_id=id))
    if isinstance(read, c.BudgetStatus):
        left = read.hard_limits.get("units", 0) - read.usage.get("units", 0)
        if left > 0:
            yield from ask(c.ReportUsageAdminArgs(at=id, dimensions=["units"], deltas=[left]))
        yield from ask(
            c.ReserveManyArgs(partition=BP, items=[ReserveRow(id, scene.any_id(), 1, scene.ms, "", "", "-")])
        )  # type: ignore[arg-type]


def _raised(s: Scene) -> Args[Any]:
    return c.RaiseBudgetArgs(
        budget_id=s.rng.choice([*BUDGETS, GONE[0]]),
        amounts=s.rng.choice(["units=5", "units=5", "odd=1"]),
        key=f"raise-{s.rng.randrange(3)}",
    )


def _changed(s: Scene) -> Args[Any]:
    hard = s.rng.choice([None, {"units": "12", "usd": "3"}, {"units": "30"}, {"units": "6", "usd": "2"}])
    every = s.rng.choice([None, None, 3_000, 0])
    changes = budget_changes(hard=hard, soft=s.rng.choice([None, {"units": "5"}]), reset_interval_ms=every)
    return c.ChangeBudgetArgs(budget_id=s.rng.choice([*BUDGETS, GONE[0]]), changes=changes)  # type: ignore[arg-type]


def _reported(s: Scene) -> Args[Any]:
    return c.ReportUsageArgs(
        at=s.rng.choice([*BUDGETS, GONE[0]]),
        dimensions=["units"],
        deltas=[s.rng.choice([0, 1, 2.5, 9])],
        dedup_key=s.rng.choice([None, f"report-{s.rng.randrange(6)}"]),
    )


def _checked(s: Scene) -> Args[Any]:
    return c.CheckAdmissionArgs(
        at=s.rng.choice([*QUOTAS, GONE[1]]), execution_id=s.any_id(), window_seconds=s.rng.choice([0, 1, 9]),  # type: ignore[arg-type]
        rate_limit=s.rng.choice([0, 0, 2]), concurrency_cap=s.rng.choice([0, 1, 3]), jitter_ms=s.rng.choice([None, 50]),
    )  # fmt: skip


def _gone(s: Scene) -> Args[Any]:
    """One that is used is deleted and made again by the next in line; so seldom that most of a run has it."""
    draw = s.rng.random()
    if draw < 0.15:
        return c.DeleteBudgetArgs(budget_id=s.rng.choice([BUDGETS[1], GONE[0]]))  # type: ignore[arg-type]
    if draw < 0.55:
        return c.CreateQuotaPolicyArgs(
            quota_policy_id=UNUSED, window_seconds=1, max_requests_per_window=1, max_concurrent=1
        )
    return c.DeleteQuotaArgs(quota_policy_id=s.rng.choice([UNUSED, UNUSED, GONE[1]]))  # type: ignore[arg-type]


OPERATIONS: list[Callable[[Scene], Args[Any]]] = [
    _raised, _raised, _changed, _reported, _reported, _checked, _checked, _gone, _gone,
    lambda s: c.ExplainArgs(execution_id=s.any_id()), lambda s: c.ExplainArgs(execution_id=s.any_id()),
    lambda s: _budget(s, s.rng.randrange(3)), lambda s: _quota(s, s.rng.randrange(3)),
    lambda s: c.ResetBudgetArgs(budget_id=s.rng.choice([*BUDGETS, GONE[0]])),  # type: ignore[arg-type]
    lambda s: c.ResetBudgetArgs(budget_id=BUDGETS[0]), lambda s: c.ResetBudgetArgs(budget_id=BUDGETS[0]),
    lambda s: c.ChangeQuotaArgs(quota_policy_id=s.rng.choice([QUOTAS[0], QUOTAS[2], GONE[1]]),  # type: ignore[arg-type]
                                max_requests_per_window=s.rng.choice([3, 5, 8])),
    lambda s: c.ChangeQuotaArgs(quota_policy_id=QUOTAS[1], max_concurrent=s.rng.choice([1, 2, 4])),  # type: ignore[arg-type]
    lambda s: c.ReleaseAdmissionArgs(at=s.rng.choice(QUOTAS), execution_id=s.any_id()),  # type: ignore[arg-type]
    lambda s: c.ReadBudgetArgs(budget_id=s.rng.choice([*BUDGETS, GONE[0]])),  # type: ignore[arg-type]
    lambda s: c.ListBudgetsArgs(partition=BP, limit=s.rng.choice([2, 9])),
    lambda s: c.TopSpendersArgs(budget_id=s.rng.choice([*BUDGETS, GONE[0]])),  # type: ignore[arg-type]
    lambda s: c.ReadQuotaArgs(quota_policy_id=s.rng.choice([*QUOTAS, GONE[1]]), key=s.rng.choice([None, "t1"])),  # type: ignore[arg-type]
    lambda s: c.ListQuotasArgs(partition=QP, limit=s.rng.choice([2, 9])),
    lambda s: c.ReadUniqueArgs(unique_id=s.rng.choice(KEYS)),
    lambda s: c.ReadOutboxArgs(partition=s.rng.choice(FP), limit=3),
]  # fmt: skip


# ---- clients ---------------------------------------------------------------------------------------------


def lines(scene: Scene) -> list[str]:
    rng = scene.rng
    some = [
        f"b {id} {rng.choice(['hold', 'fail'])} {rng.choice(AMOUNTS)}"
        for id in rng.sample(BUDGETS, rng.choice([0, 1, 1, 1, 2]))
    ]
    for id in rng.sample(QUOTAS, rng.choice([0, 0, 1, 1])):
        some.append(f"q {id} hold {rng.choice(['-', 't1', 't2'])}")
    if rng.random() < 0.02:
        some.append(f"{'b' if rng.random() < 0.5 else 'q'} GONE hold -")
        some[-1] = some[-1].replace("GONE", GONE[some[-1][0] == "q"])
    return some


def _creation(scene: Scene, text: str | None) -> c.CreateExecutionArgs:
    made = scene.creation(scene.rng.randrange(12) if scene.rng.random() < 0.1 else None)
    return msgspec.structs.replace(made, lane_id=ADMITTED, fairness_key=scene.rng.choice([None, "t1", "t2"]),
                                   admission=text)  # fmt: skip


def client(scene: Scene, name: str) -> Talk:
    rng = scene.rng
    while True:
        draw = rng.random()
        some = lines(scene)
        if draw < 0.45 and scene.alive < scene.crowd:
            yield from ask(_creation(scene, "\n".join(some) or None))
        elif draw < 0.7 and scene.alive < scene.crowd:
            many = scene.creation_of_many()
            texts = ["\n".join(some) or None, "\n".join(lines(scene)) or None]
            rows = [msgspec.structs.replace(row, admission=rng.choice(texts)) for row in many.items]
            yield from ask(msgspec.structs.replace(many, lane_id=ADMITTED, items=rows))
        elif draw < 0.85:
            yield from _unique(scene, some)
        elif draw < 0.93:
            yield from ask(
                c.CancelExecutionArgs(execution_id=scene.any_id(), reason="no", source=c.CancelSource("flow_cascade"))
            )
        else:
            yield from ask(c.ReplayExecutionArgs(execution_id=scene.any_id()))


def _unique(scene: Scene, some: list[str]) -> Talk:
    """Take a key, create, and give it back where it turns out that the job was there before."""
    rng, key = scene.rng, scene.rng.choice(KEYS)
    scope = rng.choice(["queued", "active", "active", "window", "forever"])
    if scope == "forever" and rng.random() < 0.8:
        scope = "active"
    made = _creation(scene, "\n".join([*some, f"u {key} {scope}"]))
    before = None
    for _ in range(2):
        window = 3_000 if scope == "window" else 0
        take = c.TakeUniqueArgs(
            unique_id=key, execution_id=made.execution_id, scope=scope, window_ms=window, instead_of=before
        )
        got = yield from ask(take)
        if isinstance(got, c.UniqueTaken):
            break
        if not isinstance(got, c.UniqueHeld) or rng.random() < 0.6:
            return
        before = got.execution_id
    else:
        return
    answer = yield from ask(made)
    if isinstance(answer, c.Created) and before is not None:
        yield from ask(
            c.CancelExecutionArgs(execution_id=before, reason="replaced", source=c.CancelSource("flow_cascade"))
        )
    elif isinstance(answer, c.Duplicate | Refusal) and got.fresh:
        yield from ask(c.DropUniqueArgs(unique_id=key, execution_id=made.execution_id))


# ---- workers ---------------------------------------------------------------------------------------------


def worker(scene: Scene, name: str, inbox: list[str]) -> Talk:
    """Claims, asks whoever has to admit, begins or puts back, spends, and reports."""
    rng = scene.rng
    tokens = frozenset(rng.sample(TOKENS, rng.randrange(len(TOKENS) + 1)))
    me: dict[str, Any] = {
        "lanes": rng.choice([[ADMITTED], [ADMITTED, "a"]]), "capability_sets": sets_for(tokens),
        "worker_id": name.partition("-")[0], "worker_instance_id": name, "lease_ttl_ms": TTL,
    }  # fmt: skip
    yield from ask(c.AnnounceTasksArgs(partition=rng.choice(FP), tasks=[f"{t}@{v}" for t in TASKS for v in (1, 2)]))
    serial = 0
    held: list[c.ClaimedJob] = []
    while True:
        inbox.clear()
        if not held:
            serial += 1
            got = yield from ask(c.ClaimBatchArgs(
                partitions=rng.sample(FP, rng.randrange(1, 3)), limit=rng.randrange(1, 6),
                claim_id=f"{name}.s.{serial}", park=rng.choice([None, name, name]), **me))  # fmt: skip
            if not isinstance(got, c.ClaimedBatch):
                continue
            held = yield from _admitted(scene, list(got.jobs))
            if not got.jobs:
                yield None
            continue
        job = held.pop(rng.randrange(len(held)))
        if rng.random() < 0.5:
            yield from _spends(scene, job)
        if rng.random() < 0.2:
            yield from ask(c.RenewManyArgs(partition=job.execution_id[:6], lease_ttl_ms=TTL,
                                           items=[c.Renewal(job.execution_id, scene.fence(job).wire)]))  # fmt: skip
        if rng.random() < 0.06:
            continue  # forgotten: its lease runs out
        end = rng.choice([scene.completion, scene.completion, scene.completion, scene.failure, scene.delay,
                          scene.unclaim])  # fmt: skip
        yield from ask(end(job))
        if rng.random() < 0.6:
            yield from _post(scene, job.execution_id[:6])


def _lines(job: c.ClaimedJob) -> tuple[list[Line], str]:
    """What must admit it, and the set its queue is named by."""
    if not job.admission:
        return [], ""
    some = [line for line in lines_of(job.admission) if line.kind in "bq"]
    return some, set_of([line for line in some if line.rest[-1] != "lane"]) or ""


def kind_of(line: Line) -> str:
    return "l" if line.rest[-1] == "lane" else line.kind


def _admitted(scene: Scene, jobs: list[c.ClaimedJob]) -> Any:
    """Ask all budgets and quotas of these jobs; what is refused goes back. Answers those that may begin."""
    rng = scene.rng
    reserves: list[tuple[c.ClaimedJob, Line, ReserveRow]] = []
    admits: list[tuple[c.ClaimedJob, Line, c.AdmissionRequest]] = []
    for job in jobs:
        some, adm = _lines(job)
        home = job.execution_id[:6]
        for line in some:
            if line.kind == "b":
                reserves.append((job, line, ReserveRow(line.id, job.execution_id, job.lease_epoch, job.lease_expires_at,  # type: ignore[arg-type]
                                                       home, adm, line.rest[1])))  # fmt: skip
            else:
                queue = f"lane:{line.uuid}" if kind_of(line) == "l" else adm
                admits.append((job, line, c.AdmissionRequest(line.id, line.key, job.execution_id, job.lease_epoch,  # type: ignore[arg-type]
                                                             job.lease_expires_at, home, queue)))  # fmt: skip
    refused: dict[str, tuple[c.ClaimedJob, Line, int, int]] = {}
    unknown: set[str] = set()
    never: dict[str, c.ClaimedJob] = {}
    now = scene.ms
    if reserves:
        got = yield from ask(c.ReserveManyArgs(partition=BP, items=[row for _, _, row in reserves]))
        for at, (job, line, _) in enumerate(reserves):
            one = got.items[at] if isinstance(got, c.ReservedMany) else None
            if one is None:
                unknown.add(job.execution_id)
            elif one.state == "never":
                never[job.execution_id] = job
            elif one.state != "granted":
                until = min(now + 5_000, one.retry_at_ms or now + 5_000)
                refused.setdefault(job.execution_id, (job, line, one.gen, until))
    if admits:
        answer = yield from ask(c.AdmitManyArgs(partition=QP, items=[row for _, _, row in admits]))
        for at, (job, line, _) in enumerate(admits):
            item = answer.items[at] if isinstance(answer, c.AdmittedMany) else None
            if item is None:
                unknown.add(job.execution_id)
            elif item.state not in ("admitted", "already"):
                refused.setdefault(
                    job.execution_id, (job, line, item.gen, now + min(5_000, item.retry_after_ms or 5_000))
                )
    for _ in range(rng.choice([0, 0, 4])):
        yield None  # a release may be heard of before its refusal
    for partition in FP:
        rows = [
            c.Refusal(job.execution_id, scene.fence(job).wire, line.id, kind_of(line), gen, until, "no room",  # type: ignore[arg-type]
                      rng.random() < 0.9, rng.random() < 0.1)
            for job, line, gen, until in refused.values()
            if job.execution_id.startswith(partition) and job.execution_id not in never
        ]  # fmt: skip
        if rows and rng.random() < 0.95:
            yield from ask(c.RefuseManyArgs(partition=partition, items=rows))
            if rng.random() < 0.5:
                yield from _post(scene, partition)
    for job in never.values():
        yield from ask(msgspec.structs.replace(scene.failure(job), failure_category="fatal"))
    # Whoever got no answer lets the lease run out.
    return [job for job in jobs if job.execution_id not in {*refused, *unknown, *never}]


def _spends(scene: Scene, job: c.ClaimedJob) -> Talk:
    rng = scene.rng
    budgets = [line.id for line in _lines(job)[0] if line.kind == "b"]
    if not budgets:
        return
    rows = [
        SpendRow(id, job.execution_id, job.lease_epoch, f"{job.lease_epoch}.{rng.randrange(4)}", rng.choice(AMOUNTS))  # type: ignore[arg-type]
        for id in [*budgets, *rng.choice([[], [], [], [GONE[0]]])]
    ]
    yield from ask(c.SpendManyArgs(partition=BP, items=rows))


# ---- the post office -------------------------------------------------------------------------------------


def _post(scene: Scene, source: Any) -> Talk:
    """Bring what a partition owes: now and then in another order, in parts, twice, or not all of it."""
    # All of it: which rows a part would be is not said, and depends on the server.
    got = yield from ask(c.ReadOutboxArgs(partition=source, limit=200))
    if isinstance(got, c.Outbox):
        yield from bring(scene, source, got.rows[: scene.rng.choice([2, 20, 200])])


def bring(scene: Scene, source: Any, rows: list[Any]) -> Talk:
    rng = scene.rng
    rows = list(rows)
    if rng.random() < 0.3:
        rng.shuffle(rows)
    bags: dict[Any, list[c.Letter]] = {}
    for row in rows:
        if rng.random() < 0.9:
            bags.setdefault(row.target, []).append(c.Letter(row.row, row.kind, row.body))
    taken: list[c.OutboxRef] = []
    for target, letters in bags.items():
        if rng.random() < 0.1:
            letters = letters + letters[:1]
        if rng.random() < 0.02:
            letters = [*letters, c.Letter("", "of a newer release", "x")]
        answer = yield from ask(c.DeliverArgs(partition=target, source=source, items=letters))
        if isinstance(answer, c.Delivered):
            left = {ref.row for ref in answer.left}
            taken += [c.OutboxRef(letter.row) for letter in letters if letter.row and letter.row not in left]
            yield from _woken(scene, target, answer.wakes)
    if taken and rng.random() < 0.9:
        yield from ask(c.AckOutboxArgs(partition=source, items=taken))


def _woken(scene: Scene, source: Any, wakes: list[Any], depth: int = 0) -> Talk:
    rng = scene.rng
    bags: dict[Any, list[c.Letter]] = {}
    for wake in wakes:
        if rng.random() < 0.9:
            bags.setdefault(wake.target, []).append(c.Letter("", wake.kind, wake.body))
    for target, letters in bags.items():
        answer = yield from ask(c.DeliverArgs(partition=target, source=source, items=letters))
        if isinstance(answer, c.Delivered) and answer.wakes and depth < 3:
            yield from _woken(scene, target, answer.wakes, depth + 1)


def postman(scene: Scene, name: str) -> Talk:
    while True:
        yield from _post(scene, scene.rng.choice(FP))
        yield None


# ---- tickers and schedules -------------------------------------------------------------------------------


def ticker(scene: Scene, name: str) -> Talk:
    rng = scene.rng
    while True:
        some: list[Any] = rng.choice([FP, FP, [*FP, BP, QP], [BP, QP]])
        got = yield from ask(c.TickArgs(partitions=some, ticker=name, limit=800, force=rng.random() < 0.1))
        if isinstance(got, c.Ticked):
            for row in got.partitions:
                if row.owed:
                    yield from bring(scene, row.partition, [one for one in row.owed if one.row])
                    yield from _woken(scene, row.partition, [one for one in row.owed if not one.row])
                if row.schedules:
                    yield from _fires(scene, row.partition, row.schedules, row.now_ms)
        yield None


def _fires(scene: Scene, partition: Any, due: list[Any], now: int) -> Talk:
    rng = scene.rng
    for _ in range(rng.choice([0, 0, 3])):
        yield None
    rows: list[c.Firing] = []
    for one in due:
        every = int(one.spec.split(" ")[1])
        at, policy = one.due_ms, one.spec.split(" ")[2]
        if rng.random() < 0.05:
            rows.append(c.Firing(one.schedule_id, at, at, now + 200, at, str(at)))
            continue
        missed = list(range(at, now + 1, every))[-4:] or [at]
        for n, instant in enumerate(missed if policy == "all" else missed[-1:]):
            after = instant + every
            since = at if n == 0 else instant
            run = None if policy == "none" and len(missed) > 1 else run_id(one.schedule_id, instant)
            rows.append(
                c.Firing(one.schedule_id, since, 0 if rng.random() < 0.02 else after, after, instant, str(instant), run)
            )
    got = yield from ask(c.FireSchedulesArgs(partition=partition, items=rows))
    if isinstance(got, c.FiredMany):
        scene.ids += [row.execution_id for row, item in zip(rows, got.items, strict=True) if item.state == "fired"]


def run_id(schedule_id: Any, instant: int) -> Any:
    """The same whoever computes it."""
    return f"{schedule_id[:6]}:{ids.uuid8(f'{schedule_id} {instant}'.encode())}"


def scheduler(scene: Scene, name: str) -> Talk:
    """Who keeps schedules: makes, changes, pauses and resumes them."""
    rng = scene.rng
    while True:
        id = rng.choice(SCHEDULES)
        draw = rng.random()
        read = yield from ask(c.ReadScheduleArgs(schedule_id=id))
        revision = read.row.revision if isinstance(read, c.ScheduleRead) else 0
        if rng.random() < 0.05:
            revision += 1
        due = scene.ms + rng.randrange(-500, 1_500)
        if draw < 0.4:
            every, policy = rng.choice([300, 900, 2_000]), rng.choice(["one", "all", "none"])
            spec = f"every {every} {policy}"
            if rng.random() < 0.05:
                due = 0
            what = rng.choice(POLICIES[:5])
            yield from ask(c.PutScheduleArgs(
                schedule_id=id, name="nightly", namespace="default", spec=spec, digest=f"d{every}{policy}",
                lane_id=rng.choice(["a", "a", ADMITTED]), execution_kind=rng.choice(TASKS), payload=b"s", due_ms=due,
                policy=None if what is None else msgspec.json.encode(what, order="sorted"),
                at_ms=due + (rng.randrange(100) if due else 0), keep_due=rng.random() < 0.3, paused=rng.random() < 0.1,
                admission=rng.choice([None, f"b {BUDGETS[0]} hold units=1"]), expected_revision=revision))  # fmt: skip
        elif draw < 0.5:
            yield from ask(c.PauseScheduleArgs(schedule_id=id))
        elif draw < 0.65:
            yield from ask(c.ResumeScheduleArgs(schedule_id=id, due_ms=due, at_ms=due, expected_revision=revision))
        elif draw < 0.72:
            yield from ask(c.RemoveScheduleArgs(schedule_id=id))
        elif draw < 0.85:
            instant = scene.ms - rng.randrange(3_000)
            rows = [c.ScheduleRun(run_id(id, at), at, str(at)) for at in (instant, instant + 900)]
            yield from ask(c.RunScheduleArgs(schedule_id=id, items=rows))
        elif draw < 0.9:
            yield from ask(c.ListSchedulesArgs(partition=rng.choice(FP), limit=rng.choice([1, 9])))
        else:
            yield from ask(c.PauseScheduleArgs(schedule_id=id))
            yield from ask(c.ResumeScheduleArgs(schedule_id=id, due_ms=due, at_ms=due, expected_revision=revision))
        yield None


__all__ = ["bring", "client", "lines_of", "operator", "postman", "scheduler", "ticker", "worker"]
