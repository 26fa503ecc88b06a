"""Problems for property tests: a few decisions, any errors, costs that need not be monotone."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.agents.table_problem import TableProblem


@st.composite
def table_problems(draw: st.DrawFn, *, monotone: bool = False) -> TableProblem:
    """Of one to four decisions of one to five widths each; the budget holds at least at the smallest."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    costs = [draw(st.lists(st.integers(0, 9), min_size=size, max_size=size)) for size in sizes]
    if monotone:
        costs = [sorted(column) for column in costs]
    errors = [draw(st.lists(st.floats(0, 1), min_size=size, max_size=size)) for size in sizes]
    least = sum(column[0] for column in costs)
    return TableProblem(costs, errors, limit=max(1, least + draw(st.integers(0, 12))))
