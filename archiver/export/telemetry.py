"""A build tells nobody what it does: OpenVINO's converter and NNCF report to a server unless the user has declined."""

from __future__ import annotations


def decline_telemetry() -> None:
    """Let openvino_telemetry find that the user has declined, in this process. To be called before NNCF is imported."""
    from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker

    OptInChecker.check = lambda self, *args, **kwargs: ConsentCheckResult.DECLINED
