"""`[policies]`: what the operator decides about a request before a route is chosen for it.

    facts        what a policy can ask about a request, or about a row of the audit log; what is not known is None
    conditions   `when` and `unless`, compiled once per generation: facts -> True, False or None (not known)
    verdict      the policies in order: what they come to together
    placing      where a request may go then: the routes of a model, or those that a restriction leaves of them

Rule 1: policies are looked at in the order they are written. A condition is about the request as the client sent it, never about
        what an earlier policy made of it; so each can be read alone.
Rule 2: every policy that applies does what it says. `refuse` ends it, and so does `final`. Of `model` and `choose` the first
        counts; `restrict` adds up (a route must fit all of them); of `cap` the lowest counts.
Rule 3: a shadow changes nothing and ends nothing. It is recorded with what it would have done at its place in the list.
Rule 4: what is not known applies nothing: a policy whose condition can not be decided is passed over. Of a request at work only a
        budget's state can be unknown.
"""

from clawproxy_router.policies.facts import Facts, RequestFacts, RowFacts
from clawproxy_router.policies.placing import Placing
from clawproxy_router.policies.verdict import BudgetState, Policies, Verdict, compiled

__all__ = ["BudgetState", "Facts", "Placing", "Policies", "RequestFacts", "RowFacts", "Verdict", "compiled"]
