"""Laws of an invoice's standing, whatever comes, in whatever order, on whatever chain."""

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from payments.invoice import (
    DEPTH_FREE,
    DUST_SAT,
    Flag,
    Outage,
    OutPoint,
    Presence,
    ReceivedOutput,
    Standing,
    Status,
    Term,
    deadline,
    renewal,
)
from payments.money import Sat
from payments.outputs import confirmations, counts, payments_of, without_conflicts
from tests.payments_facts import LAWS, TIP, UNTIL, World, amounts_sat, outages, terms, transactions, worlds

RANK = {
    Status.CANCELLED: 0,
    Status.EXPIRED: 0,
    Status.OPEN: 0,
    Status.SEEN: 1,
    Status.CONFIRMING: 2,
    Status.SETTLED: 3,
}
LOST = {Presence.CONFLICTED, Presence.GONE}


def counted_of(world: World) -> list[ReceivedOutput]:
    eligible = [
        output
        for output in world.outputs
        if counts(
            output, created_at=world.invoice.created_at, tip_height=world.chain.tip_height, now=world.now
        )
    ]
    return [output for payment in without_conflicts(payments_of(eligible)) for output in payment.outputs]


def not_worse(after: Standing, before: Standing) -> bool:
    return (
        after.depth >= before.depth
        and RANK[after.status] >= RANK[before.status]
        and after.covered >= before.covered
        and after.covered_now >= before.covered_now
        and after.due_sat <= before.due_sat
    )


@LAWS
@given(worlds, st.data())
def test_order_never_matters(world: World, data: st.DataObject) -> None:
    shuffled = replace(
        world,
        outputs=tuple(data.draw(st.permutations(world.outputs))),
        chain=replace(world.chain, outages=tuple(data.draw(st.permutations(world.chain.outages)))),
    )
    assert shuffled.standing() == world.standing()
    assert payments_of(shuffled.outputs) == payments_of(world.outputs)


@LAWS
@given(worlds)
def test_depth_is_the_deepest_cover(world: World) -> None:
    """Against the definition itself: try every depth from the deepest down."""
    policy, counted, tip = world.invoice.policy, counted_of(world), world.chain.tip_height

    def covers(term: Term, depth: int) -> bool:
        since = max(term.offered_at, world.invoice.created_at)
        until = deadline(term.valid_until, world.chain.outages, offered_at=since)
        paid_sat = sum(
            output.amount_sat
            for output in counted
            if output.first_seen_at <= until and confirmations(output, tip) >= depth
        )
        slack_sat = max(policy.tolerance_sat, term.amount_sat * policy.tolerance_ppm // 1_000_000)
        return paid_sat >= term.amount_sat - slack_sat and (paid_sat > 0 or term.amount_sat == 0)

    free = any(term.amount_sat == 0 for term in world.invoice.terms)
    depths = (
        depth for depth in range(150, -1, -1) if any(covers(term, depth) for term in world.invoice.terms)
    )
    assert world.standing().depth == (DEPTH_FREE if free else next(depths, -1))


@LAWS
@given(worlds)
def test_a_standing_agrees_with_itself(world: World) -> None:
    found = world.standing()
    policy = world.invoice.policy
    counted = counted_of(world)
    tip = world.chain.tip_height
    assert (found.status is Status.SETTLED) == (found.depth >= max(policy.key_at, 1))
    assert (found.status is Status.CONFIRMING) == (1 <= found.depth < policy.key_at)
    assert found.covered == (found.depth >= 0) == (found.due_sat == 0)
    assert found.covered or not found.covered_now
    if found.depth not in (-1, DEPTH_FREE):
        assert found.depth in {confirmations(output, tip) for output in counted}
    assert 0 <= found.confirmed_sat <= found.received_sat
    assert found.received_sat == sum(o.amount_sat for o in counted if o.presence is not Presence.MISSING)
    assert 0 <= found.late_sat <= found.received_sat
    assert found.surplus_sat >= 0
    assert found.price_sat in {term.amount_sat for term in world.invoice.terms}
    assert (Flag.PARTIAL in found.flags) == (bool(counted) and not found.covered)
    assert Flag.OVER not in found.flags or found.covered
    assert (Flag.MISSING in found.flags) == any(o.presence is Presence.MISSING for o in counted)
    assert (Flag.REORGED in found.flags) == any(o.reorged for o in counted)
    if found.status in (Status.OPEN, Status.CANCELLED):
        assert not counted
    if found.status in (Status.OPEN, Status.EXPIRED):
        assert (found.status is Status.EXPIRED) == (world.now > found.valid_until)


@LAWS
@given(worlds)
def test_no_two_counted_transactions_share_an_input(world: World) -> None:
    eligible = [o for o in world.outputs if o.amount_sat >= DUST_SAT]
    payments = payments_of(eligible)
    kept = without_conflicts(payments)
    spent = [point for payment in kept for point in payment.inputs]
    assert len(spent) == len(set(spent))
    for payment in payments:
        assert payment.outputs == tuple(o for o in eligible if o.outpoint.txid == payment.txid)
        lost = payment.outputs[0].presence in LOST
        # Nothing is left out without a reason.
        assert (payment in kept) == (
            not lost and not any(payment.inputs & k.inputs for k in kept if k != payment)
        )
    best = {Presence.BLOCK: 0, Presence.MEMPOOL: 1, Presence.MISSING: 2}
    for payment in payments:
        if payment not in kept and payment.outputs[0].presence not in LOST:
            rivals = [k for k in kept if payment.inputs & k.inputs]
            assert min(best[k.outputs[0].presence] for k in rivals) <= best[payment.outputs[0].presence]


@LAWS
@given(worlds, transactions("z", "stuv"), st.integers(1, DUST_SAT - 1))
def test_dust_changes_nothing_at_all(world: World, dust: tuple[ReceivedOutput, ...], amount_sat: int) -> None:
    dusty = tuple(replace(output, amount_sat=Sat(amount_sat)) for output in dust)
    assert replace(world, outputs=world.outputs + dusty).standing() == world.standing()


@LAWS
@given(worlds, transactions("z", "klmn"))
def test_money_of_others_never_harms(world: World, gift: tuple[ReceivedOutput, ...]) -> None:
    assert not_worse(replace(world, outputs=world.outputs + gift).standing(), world.standing())


@LAWS
@given(worlds, st.data())
def test_more_money_in_an_output_never_harms(world: World, data: st.DataObject) -> None:
    assume(any(output.amount_sat >= DUST_SAT for output in world.outputs))
    chosen = data.draw(st.sampled_from([o for o in world.outputs if o.amount_sat >= DUST_SAT]))
    richer = replace(chosen, amount_sat=Sat(chosen.amount_sat + data.draw(amounts_sat)))
    outputs = tuple(richer if output is chosen else output for output in world.outputs)
    assert not_worse(replace(world, outputs=outputs).standing(), world.standing())


@LAWS
@given(worlds)
def test_a_block_on_top_never_harms(world: World) -> None:
    taller = replace(world, chain=replace(world.chain, tip_height=world.chain.tip_height + 1))
    assert not_worse(taller.standing(), world.standing())


@LAWS
@given(worlds, outages)
def test_an_outage_never_harms(world: World, outage: Outage) -> None:
    blinder = replace(world, chain=replace(world.chain, outages=(outage, *world.chain.outages)))
    before, after = world.standing(), blinder.standing()
    assert after.depth >= before.depth
    assert after.covered_now >= before.covered_now
    assert after.valid_until >= before.valid_until


@LAWS
@given(worlds, terms)
def test_another_term_never_harms(world: World, term: Term) -> None:
    renewed = replace(world, invoice=replace(world.invoice, terms=(*world.invoice.terms, term)))
    before, after = world.standing(), renewed.standing()
    assert after.depth >= before.depth
    assert RANK[after.status] >= RANK[before.status]
    if before.covered:
        assert after.price_sat <= before.price_sat


@LAWS
@given(worlds, st.integers(0, 10_000))
def test_time_alone_takes_back_no_payment(world: World, seconds: int) -> None:
    before, after = world.standing(), replace(world, now=world.now + seconds).standing()
    if before.covered or before.status is Status.EXPIRED:
        assert after == before
    elif before.status is Status.CANCELLED:
        assert after.status is Status.CANCELLED
    else:
        assert after.status in (before.status, Status.EXPIRED)
        assert after.flags == before.flags


@LAWS
@given(worlds)
def test_calling_off_changes_only_what_nothing_was_paid_on(world: World) -> None:
    called_off = replace(world, invoice=replace(world.invoice, cancelled=True)).standing()
    kept = replace(world, invoice=replace(world.invoice, cancelled=False)).standing()
    if called_off.status is Status.CANCELLED:
        assert kept.status in (Status.OPEN, Status.EXPIRED)
        assert kept.received_sat == 0
        assert kept.flags == frozenset()
    else:
        assert called_off == kept


@LAWS
@given(worlds)
def test_a_chain_without_the_block_is_worth_no_more(world: World) -> None:
    """A reorg takes the blocked outputs back to the mempool: nothing is settled without a block."""
    reorged = tuple(
        replace(output, presence=Presence.MEMPOOL, height=None, reorged=True)
        if output.presence is Presence.BLOCK
        else output
        for output in world.outputs
    )
    found = replace(world, outputs=reorged).standing()
    assert found.depth in (-1, 0, DEPTH_FREE)
    assert found.confirmed_sat == 0


@LAWS
@given(worlds, st.integers(1, 5_000), st.integers(1, 9_000), st.booleans())
def test_a_renewal_is_wanted_once(world: World, lasts_s: int, amount_sat: int, asked: bool) -> None:
    world = replace(world, now=max(world.now, world.standing().valid_until + 1))
    before = world.standing()
    quote = Term(Sat(amount_sat), world.now + lasts_s)
    term = renewal(world.invoice, before, quote, world.now, asked=asked)
    if before.status is not Status.EXPIRED or not (asked or before.late_sat):
        assert term is None
        return
    assert term is not None
    invoice = replace(world.invoice, terms=(*world.invoice.terms, term))
    renewed = replace(world, invoice=invoice).standing()
    assert renewed.status is not Status.EXPIRED
    assert renewal(invoice, renewed, quote, world.now, asked=asked) is None
    # When it has run out in its turn, the same money asks for nothing more.
    in_sight = all(output.first_seen_at <= world.now for output in world.outputs)
    later = replace(world, invoice=invoice, now=renewed.valid_until + 1)
    fresh = Term(Sat(amount_sat), later.now + lasts_s)
    if in_sight:
        assert renewal(invoice, later.standing(), fresh, later.now) is None


@LAWS
@given(
    st.lists(outages, max_size=4),
    st.integers(UNTIL - 3_000, UNTIL - 1_000),
    st.integers(1, 900),
)
def test_a_deadline_is_a_clock_that_stops_in_outages(
    blind: list[Outage], offered_at: int, lasts_s: int
) -> None:
    dark = {second for outage in blind for second in range(outage.started_at, outage.ended_at)}
    now, left_s = offered_at, lasts_s
    while left_s > 0:
        left_s -= now not in dark
        now += 1
    assert deadline(offered_at + lasts_s, blind, offered_at=offered_at) == now


def test_coinbases_do_not_exclude_each_other() -> None:
    null = OutPoint("0" * 64, 2**32 - 1)
    coinbases = [
        ReceivedOutput(
            OutPoint(txid, 0), Sat(5_000), UNTIL, Presence.BLOCK, TIP, True, inputs=frozenset({null})
        )
        for txid in "ab"
    ]
    assert len(without_conflicts(payments_of(coinbases))) == 2
    assert all(confirmations(output, TIP - 1) == 0 for output in coinbases)
    assert all(not counts(o, created_at=UNTIL, tip_height=TIP + 98, now=UNTIL) for o in coinbases)
    assert all(counts(o, created_at=UNTIL, tip_height=TIP + 99, now=UNTIL) for o in coinbases)
