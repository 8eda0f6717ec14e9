"""The probes of `aegis doctor`: the installation, the GPU, the machine and services.

This room imports only the standard library until a probe runs, and a probe that raises is a finding: a doctor is needed
most where an import fails.
"""

from aegis.doctor.cures import set_up_again
from aegis.doctor.finding import Finding
from aegis.doctor.probes import PROBES, examine, is_ready

__all__ = ["PROBES", "Finding", "examine", "is_ready", "set_up_again"]
