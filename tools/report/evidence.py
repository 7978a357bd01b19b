"""Everything that the report is a function of, read once."""

import functools
from dataclasses import dataclass
from pathlib import Path

from report.claims import read_claims
from report.comparisons import Comparison, Identity, comparisons_of, identities_of
from report.costs import Cost, read_costs
from report.gradients import read_gradients
from report.logs import Finding, read_logs
from report.names import RESULTS
from report.paper import Constants, PaperRow, read_constants, read_lines, read_paper
from report.rows import Rows, sort_into_rows
from report.tables import Row
from report.texts import read_texts
from report.tuned import Tuned, read_tuned


@dataclass(frozen=True)
class Evidence:
    """The logs of a results folder, and the tables that stand beside them in results/."""

    paper: list[PaperRow]
    rows: Rows
    findings: list[Finding]
    costs: list[Cost]
    constants: Constants
    claims: list[Row]
    printed: list[Row]  # the lines of paper.csv
    texts: list[Row]
    gradients: list[Row]
    tuned: Tuned | None

    @functools.cached_property
    def comparisons(self) -> list[Comparison]:
        return comparisons_of(self.rows.logs, self.paper)

    @functools.cached_property
    def identities(self) -> list[Identity]:
        return identities_of(self.comparisons)


def read_evidence(folder: Path, constants: Path = RESULTS) -> Evidence:
    """The evidence of a results folder; `constants` has paper.csv and others. Raises UserError."""
    paper = read_paper(constants / "paper.csv")
    logs, findings = read_logs(folder / "logs")
    rows = sort_into_rows(logs, paper)
    tuned = read_tuned(folder, logs)
    findings = findings + rows.findings + (tuned.findings if tuned else [])
    return Evidence(
        paper,
        rows,
        sorted(findings, key=str),
        read_costs(constants / "costs.csv"),
        read_constants(constants / "regression_constants.csv"),
        read_claims(constants / "claims.csv"),
        read_lines(constants / "paper.csv"),
        read_texts(),
        read_gradients(constants / "gradients.csv"),
        tuned,
    )
