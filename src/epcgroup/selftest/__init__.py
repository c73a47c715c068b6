"""The scenarios of the series' own test scripts, written anew, for any tree of cgroups with EPC.

`scenarios` says what is done and expected, `groups` makes the cgroups and takes them away,
`programs` starts the enclaves in them, `play` goes through the steps and judges.
The scripts: spec 7.2 (v5) and 7.5 (v11 to v17).
"""

from epcgroup.selftest.play import Outcome, play
from epcgroup.selftest.programs import ours
from epcgroup.selftest.scenarios import FORMS, Form, Step

__all__ = ["FORMS", "Form", "Outcome", "Step", "ours", "play"]
