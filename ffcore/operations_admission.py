"""The facade's part for admission: budgets, quotas, unique keys, schedules, mail. The rest is in `operations.py`."""

from __future__ import annotations

from ffcore.contracts.admission import (
    AdmitManyArgs,
    AdmittedMany,
    CheckAdmissionArgs,
    CheckAdmissionResult,
    ReleaseAdmissionArgs,
    ReleaseAdmissionResult,
)
from ffcore.contracts.admit import RefusedMany, RefuseManyArgs
from ffcore.contracts.budget import (
    BudgetChanged,
    BudgetDeleted,
    BudgetRaised,
    BudgetsPage,
    BudgetStatus,
    ChangeBudgetArgs,
    CreateBudgetArgs,
    CreateBudgetResult,
    DeleteBudgetArgs,
    ListBudgetsArgs,
    RaiseBudgetArgs,
    ReadBudgetArgs,
    ReportUsageAdminArgs,
    ReportUsageArgs,
    ReportUsageResult,
    ReservedMany,
    ReserveManyArgs,
    ResetBudgetArgs,
    ResetBudgetResult,
    Spenders,
    SpendManyArgs,
    SpentMany,
    TopSpendersArgs,
)
from ffcore.contracts.explain import ExplainArgs, Explained
from ffcore.contracts.mail import DeliverArgs, Delivered
from ffcore.contracts.quota import (
    ChangeQuotaArgs,
    CreateQuotaPolicyArgs,
    CreateQuotaPolicyResult,
    DeleteQuotaArgs,
    ListQuotasArgs,
    QuotaChanged,
    QuotaDeleted,
    QuotasPage,
    QuotaStatus,
    ReadQuotaArgs,
)
from ffcore.contracts.schedule import (
    FiredMany,
    FireSchedulesArgs,
    ListSchedulesArgs,
    PauseScheduleArgs,
    PutScheduleArgs,
    ReadScheduleArgs,
    RemoveScheduleArgs,
    ResumeScheduleArgs,
    RunScheduleArgs,
    ScheduleChanged,
    SchedulePut,
    ScheduleRead,
    ScheduleRemoved,
    ScheduleRuns,
    SchedulesPage,
)
from ffcore.contracts.unique import (
    DropUniqueArgs,
    ReadUniqueArgs,
    TakeUniqueArgs,
    UniqueDropped,
    UniqueFree,
    UniqueHeld,
    UniqueNotHeld,
    UniqueTaken,
)
from ffcore.contracts.upkeep import Outbox, ReadOutboxArgs
from ffcore.operations_durable import Caller


class AdmissionOperations(Caller):
    """One line each, as in `Operations`."""

    # ---- what was not admitted

    async def refuse_many(self, args: RefuseManyArgs) -> RefusedMany:
        """Put jobs back that a budget or a quota did not admit, and halt what is like them."""
        return await self.call(args)

    # ---- mail

    async def deliver(self, args: DeliverArgs) -> Delivered:
        """Apply rows that one partition owes to another, each once however often it is delivered."""
        return await self.call(args)

    async def read_outbox(self, args: ReadOutboxArgs) -> Outbox:
        """What a partition owes to others."""
        return await self.call(args)

    # ---- budget

    async def change_budget(self, args: ChangeBudgetArgs) -> BudgetChanged:
        """Bring a budget's limits and modes to what is given."""
        return await self.call(args)

    async def create_budget(self, args: CreateBudgetArgs) -> CreateBudgetResult:
        """Create a budget; an id that exists is left as it is."""
        return await self.call(args)

    async def delete_budget(self, args: DeleteBudgetArgs) -> BudgetDeleted:
        """Forget a budget; what must be admitted by it is held until it is there again."""
        return await self.call(args)

    async def list_budgets(self, args: ListBudgetsArgs) -> BudgetsPage:
        """Budgets of one partition, in the order of their ids."""
        return await self.call(args)

    async def raise_budget(self, args: RaiseBudgetArgs) -> BudgetRaised:
        """Add to hard limits, once per key."""
        return await self.call(args)

    async def read_budget(self, args: ReadBudgetArgs) -> BudgetStatus:
        """A budget as it is now."""
        return await self.call(args)

    async def report_usage_and_check(self, args: ReportUsageArgs | ReportUsageAdminArgs) -> ReportUsageResult:
        """Record what was spent; the same dedup key again changes nothing."""
        return await self.call(args)

    async def reserve_many(self, args: ReserveManyArgs) -> ReservedMany:
        """Ask budgets for room for executions that are about to start."""
        return await self.call(args)

    async def reset_budget(self, args: ResetBudgetArgs) -> ResetBudgetResult:
        """Begin a new period now: nothing is used. The instants of later resets stay."""
        return await self.call(args)

    async def spend_many(self, args: SpendManyArgs) -> SpentMany:
        """Record what executions spent, each row by itself."""
        return await self.call(args)

    async def top_spenders(self, args: TopSpendersArgs) -> Spenders:
        """Who spent most of a budget in this period."""
        return await self.call(args)

    # ---- quota

    async def admit_many(self, args: AdmitManyArgs) -> AdmittedMany:
        """Ask quotas for places and starts of claimed executions."""
        return await self.call(args)

    async def change_quota(self, args: ChangeQuotaArgs) -> QuotaChanged:
        """Other limits; whoever waits for the quota asks again."""
        return await self.call(args)

    async def check_admission_and_record(self, args: CheckAdmissionArgs) -> CheckAdmissionResult:
        """Ask a quota for one execution, without a lease."""
        return await self.call(args)

    async def create_quota_policy(self, args: CreateQuotaPolicyArgs) -> CreateQuotaPolicyResult:
        return await self.call(args)

    async def delete_quota(self, args: DeleteQuotaArgs) -> QuotaDeleted:
        """Forget a quota; what runs goes on."""
        return await self.call(args)

    async def list_quotas(self, args: ListQuotasArgs) -> QuotasPage:
        """A page of a partition's quotas, by id."""
        return await self.call(args)

    async def read_quota(self, args: ReadQuotaArgs) -> QuotaStatus:
        """A quota, and what it or one of its keys has used up."""
        return await self.call(args)

    async def release_admission(self, args: ReleaseAdmissionArgs) -> ReleaseAdmissionResult:
        """Give back the place of one execution."""
        return await self.call(args)

    # ---- unique keys

    async def drop_unique(self, args: DropUniqueArgs) -> UniqueDropped | UniqueNotHeld:
        """Give back a key that this execution holds."""
        return await self.call(args)

    async def read_unique(self, args: ReadUniqueArgs) -> UniqueHeld | UniqueFree:
        """Who holds a key."""
        return await self.call(args)

    async def take_unique(self, args: TakeUniqueArgs) -> UniqueTaken | UniqueHeld:
        """Hold a key for an execution that is about to be created."""
        return await self.call(args)

    # ---- schedule

    async def fire_schedules(self, args: FireSchedulesArgs) -> FiredMany:
        """Fire what a tick has answered as due, each instant once whoever ticks."""
        return await self.call(args)

    async def list_schedules(self, args: ListSchedulesArgs) -> SchedulesPage:
        """A page of a partition's schedules."""
        return await self.call(args)

    async def pause_schedule(self, args: PauseScheduleArgs) -> ScheduleChanged:
        """Let a schedule fire nothing until it is resumed."""
        return await self.call(args)

    async def put_schedule(self, args: PutScheduleArgs) -> SchedulePut:
        """Create a schedule, or bring it to another definition."""
        return await self.call(args)

    async def read_schedule(self, args: ReadScheduleArgs) -> ScheduleRead:
        """A schedule as it stands, with what it submits."""
        return await self.call(args)

    async def remove_schedule(self, args: RemoveScheduleArgs) -> ScheduleRemoved:
        """Forget a schedule; its runs stay."""
        return await self.call(args)

    async def resume_schedule(self, args: ResumeScheduleArgs) -> ScheduleChanged:
        """Let a paused schedule go on."""
        return await self.call(args)

    async def run_schedule(self, args: RunScheduleArgs) -> ScheduleRuns:
        """Make runs of a schedule for instants of the caller's choice."""
        return await self.call(args)

    # ---- explain

    async def explain(self, args: ExplainArgs) -> Explained:
        """What a claim would do with an execution, without doing it."""
        return await self.call(args)
