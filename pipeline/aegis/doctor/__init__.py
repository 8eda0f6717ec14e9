"""What `aegis doctor` looks at: the installation, the card, the machine, what lies outside of it.

Nothing here imports anything but the standard library until a probe runs, and a probe that fails is a finding: the
set-ups that need a doctor most are those in which something does not import.
"""

from aegis.doctor.cures import set_up_again
from aegis.doctor.finding import Finding
from aegis.doctor.probes import PROBES, examine, is_ready

__all__ = ["PROBES", "Finding", "examine", "is_ready", "set_up_again"]
