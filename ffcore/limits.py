"""Every bound of the engine, once. The assembler writes these into the Lua library as `LIMITS`.

Sizes are bytes, spans milliseconds, counts plain integers; a value past its limit is refused with a
typed error before anything is written.
"""

from __future__ import annotations

from typing import Final

PAYLOAD_BYTES: Final = 1 << 20
RESULT_BYTES: Final = 1 << 20
SHORT_RESULT_BYTES: Final = 64
"""Results up to this stand in the record itself; a longer value would change the record's encoding."""
FRAME_BYTES: Final = 64 << 10
SIGNAL_BYTES: Final = 64 << 10
STREAM_FRAMES_N: Final = 10_000
"""Frames an attempt's stream keeps, about: the oldest go first."""
STREAM_BYTES: Final = 32 << 20
"""The same by weight, about: large frames are kept in smaller number."""
LIVE_FRAMES_N: Final = 1_000
LIVE_BYTES: Final = 4 << 20
"""The same for best-effort frames, which have a stream of their own."""
STREAMS_N: Final = 100
"""Attempts of an execution whose frames are kept."""
STREAM_READ_N: Final = 10_000
"""Frames of one read; the answer ends before, at CLAIM_BYTES."""
SUMMARY_BYTES: Final = 256 << 10
TAGS_N: Final = 64
TAG_VALUE_BYTES: Final = 256
KEY_BYTES: Final = 512
NAME_BYTES: Final = 128
"""Lane, task and namespace names."""
WORKER_INSTANCE_BYTES: Final = 40
"""Short, because claim and lease ids are built from it and live in the execution's record."""
LEASE_ID_BYTES: Final = 64
REASON_BYTES: Final = 16 << 10
CAPABILITIES_N: Final = 256
CAPABILITIES_BYTES: Final = 4096
PRIORITY_MIN: Final = -100
PRIORITY_MAX: Final = 100
PAGE_N: Final = 100
PAGE_MAX_N: Final = 1000
ROWS_N: Final = 200
"""Items of one folded call; a batch stays under a few milliseconds of a blocked server."""
BULK_N: Final = 100
"""Jobs of one call of submit_many: half of what a call may carry holds the server half as long for 2 % more work."""
BATCH_BYTES: Final = 1 << 20
CLAIM_BYTES: Final = 2 << 20
CAP_SETS_N: Final = 256
"""Live capability sets of one lane and partition."""
LANES_N: Final = 4096
"""Lanes in use in one partition; also records of settings."""
LANE_IDLE_MS: Final = 600_000
"""A lane without jobs, settings or parked workers is looked at this often, and forgotten."""
AGED_MAX_S: Final = 7 * 24 * 3600
"""Seconds one point of priority may be worth in an aged lane: with 201 priorities, some four years."""
POLICIES_N: Final = 4096
"""Policies kept once for all executions of a partition; from half of it on, those nobody uses are looked for."""
POLICY_SWEEP_MS: Final = 600_000
"""Between two looks for unused policies."""
HOLDS_N: Final = 64
HOLD_WHAT_BYTES: Final = 512
HOLD_REASON_BYTES: Final = 1024
WORKER_INFO_BYTES: Final = 16 << 10
"""What a worker tells of itself, and a task's descriptor."""
GRANT_WORKER_BYTES: Final = 48
VERSION_MAX: Final = 1_000_000_000
"""Versions of a task."""
DIGEST_BYTES: Final = 32
CATEGORY_BYTES: Final = 64
"""Failure categories, reasons of an expiry."""
HEADS_N: Final = 16
"""Queue heads one claim compares."""
HOLD_SKIPS_N: Final = 8
CLAIM_TICK_N: Final = 8
TICK_N: Final = 200
LEASE_TTL_MIN_MS: Final = 100
LEASE_TTL_MAX_MS: Final = 24 * 3600 * 1000
LEASE_TTL_MS: Final = 30_000
"""Longer than the worst pause seen in a healthy process, short enough to wait out."""
RENEWAL_INTERVAL_MAX_MS: Final = 10_000
SPAN_MAX_MS: Final = 366 * 24 * 3600 * 1000 * 10
DEDUP_WINDOW_MS: Final = 24 * 3600 * 1000
RETENTION_MIN_AGE_MS: Final = 60_000
RETENTION_AGE_MS: Final = 24 * 3600 * 1000
"""How long what has ended is kept where a lane says nothing else."""
GATE_PCT: Final = 80
"""Submits are refused while the server uses this share of its maxmemory; what works goes on up to all of it."""
GATE_MS: Final = 3_000
"""How long one look keeps the gate closed; three rounds of a ticker, so that it opens soon after the last one died."""
FULL_RETRY_MS: Final = 1_000
"""What a refused submit is told to wait: memory is freed by finishing work, which takes seconds."""
WAITER_MS: Final = 60_000
PARK_MS: Final = 5_000
HAND_BACKS_N: Final = 100
UNKNOWN_TASK_MS: Final = 60_000
CANCEL_GRACE_MS: Final = 30_000
GRANT_TTL_MAX_MS: Final = 600_000
OVERDUE_MS: Final = 2_000
"""A partition nobody looked at for this long, with a lease due, gets a grace before leases expire."""
TICKER_MS: Final = 1_000
HISTORY_N: Final = 500
"""Entries of the feed one call of an execution's history looks at."""
EVENTS_N: Final = 4_096
"""Entries of the partition's event feed; an entry may hold several transitions."""
ATTEMPTS_N: Final = 100
"""Closed attempts kept per execution."""
STEPS_N: Final = 10_000
STEPS_BYTES: Final = 16 << 20
"""Recorded steps of one run, and their results with names and keys; `ContinueAs` begins a new run."""
STEP_KEY_BYTES: Final = 64
STEPS_REOPEN_N: Final = 100
"""Steps a replay looks at, newest first, for the one whose final failure ended the run before."""
JOURNAL_HEAD_BYTES: Final = 64 << 10
"""What a claim answers of recorded steps, and one page of the rest."""
WAITPOINTS_N: Final = 64
"""Open at a time per execution, and named by one suspension."""
SIGNALS_N: Final = 10_000
"""Signals one execution takes."""
SIGNALS_BYTES: Final = 16 << 20
"""Signals one execution keeps for waits to come, with their payloads."""
SIGNAL_DEDUP_MS: Final = 24 * 3600 * 1000
"""How long a signal's key is remembered where its sender says nothing else."""
WAITPOINTS_KEPT_N: Final = 1_000
"""Waitpoints remembered per execution, closed ones included, so that a late signal hears why it is refused."""
KID_BYTES: Final = 32
KIDS_N: Final = 64
"""Kids that sign or verify in one partition."""
BAD_TOKENS_MS: Final = 1_000
"""Refused tokens leave at most one entry in a partition's feed in this time, with how many there were."""
MATCHER_NAMES_N: Final = 16
"""Names one matcher accepts; more than that is data, and belongs into the signal's payload."""
CONDITION_DEPTH: Final = 4
CONDITION_NODES_N: Final = 512
CONDITION_BYTES: Final = 128 << 10
"""A compiled condition: nodes, and as text."""
MATCHED_BYTES: Final = 8 << 20
"""Signals one suspension is resumed with, all together."""
SUSPEND_KEYS_N: Final = 64
"""Idempotency keys of suspensions an execution remembers."""
POINTER_BYTES: Final = 4 << 10
"""A continuation pointer: where the caller keeps what it goes on with."""
TIMEOUT_PAST_MS: Final = 600_000
"""A timeout further back than this is a mistake in a clock or a unit, not a wish."""
FLOW_NODES_N: Final = 100_000
FLOW_EDGES_N: Final = 500_000
FLOW_BYTES: Final = 256 << 20
"""Payloads of one flow, all together."""
FLOW_CHUNK_N: Final = 100
"""Nodes one call of a submit brings: some 5 ms."""
FLOW_CHUNK_EDGES_N: Final = 1_000
FLOW_PLANS_N: Final = 64
"""Tasks with their options one call of a submit brings."""
EDGES_INLINE_N: Final = 256
"""Edges one call resolves, members it cancels or reopens; the rest follows at once, by tick."""
EDGE_REF_BYTES: Final = 512
CYCLE_SEARCH_N: Final = 1_000
"""Executions looked at to find out whether an edge would close a cycle."""
INPUTS_N: Final = 16
INPUTS_BYTES: Final = 64 << 10
"""Results of upstreams a claim's answer takes along; the rest is read by `ReadUpstreamsArgs`."""
STAGING_MS: Final = 3_600_000
"""How long a graph may be in the sending before what there is of it is removed."""
ADMISSIONS_N: Final = 16
"""Budgets, quotas and unique keys of one execution."""
ADMISSION_BYTES: Final = 4 << 10
DIMENSIONS_N: Final = 32
"""Of one budget."""
HALT_MS: Final = 5_000
"""How long a queue that was refused by a budget or a quota waits at most before it is asked for again."""
WAITING_MS: Final = 24 * 3600 * 1000
"""How long a budget remembers a queue it has refused, from the last time."""
RESERVATION_MS: Final = 60_000
"""How often a reservation that is past its lease is looked at in the partition of its execution."""
REPORT_KEYS_MS: Final = 24 * 3600 * 1000
"""How long the key of a report is remembered."""
SPENDERS_N: Final = 10_000
"""Executions of a budget whose spending is kept apart."""
DEAD_WORKERS_MS: Final = 3_600_000
"""How long a worker that gives no more sign of life is remembered as dead."""
DEAD_WORKERS_N: Final = 1_000
"""So many of them at most; the longest dead go first."""
WEIGHT_MAX: Final = 100
"""Weights of fairness keys, at most; at least one by it."""
WEIGHTS_N: Final = 1_000
QUOTA_N: Final = 1_000_000
"""Starts of one window and places of one quota: each start is remembered, so that a window is exact."""
QUOTA_WINDOW_S: Final = 366 * 24 * 3600
SCHEDULES_N: Final = 100_000
"""Schedules of one partition."""
FIRES_N: Final = 100
"""Schedules one tick answers of a partition, and one call fires."""
SCHEDULE_SPEC_BYTES: Final = 2 << 10
"""When a schedule fires, as text."""
BACKFILL_N: Final = 1_000
"""Executions one call of a backfill makes."""
PARTITIONS: Final = 4
"""Default count for `ff init`; measured, see docs/decisions."""
