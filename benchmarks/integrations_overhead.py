"""What handing a measurement to a tracker costs the training thread: drawing and writing happen on the sink's own.

python benchmarks/integrations_overhead.py --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time


def measurement(step: int, layers: int = 24):
    """Return a measurement as a 24-layer model's."""
    from topoopt.measurement import Assessment, Cost, GroupMeasurement, Measurement, Phase, SpectralReading

    group = GroupMeasurement(
        n=1024,
        d=769,
        gain=0.1,
        certified=True,
        distortion=(0.9, 1.1),
        distortion_window=(0.9, 1.1),
        distortion_total=(0.9, 1.1),
        contraction=0.1,
        merge_margin=1.0,
        diagrams=(),
        diagrams_step=-1,
        covering_radius=0.0,
        resolution=1.0,
        recomputed=False,
        vanishing=0,
        twins=0,
        vanishing_tolerance=0.0,
        twin_tolerance=0.0,
    )
    return Measurement(
        step=step,
        lr=(0.5,),
        lr_scale=1.0,
        spectral=SpectralReading(step, 0.5, 2.0),
        assessment=Assessment(Phase.CONSTRAINED, 0.5, "spectral", (1.0,), ((1.0, 2.0),)),
        groups={f"layer.{i}": group for i in range(layers)},
        cost=Cost(0.1, 0.01),
    )


def trackers(rounds: int) -> None:
    """Print microseconds a measurement on the training thread, and what the tracker itself took on its own."""
    from topoopt.integrations.background import BackgroundSink
    from topoopt.integrations.tensorboard import TensorBoardSink

    class Stuck(BackgroundSink):
        def deliver(self, measurement) -> None:
            time.sleep(3600)

    def time_of(sink, patience: float) -> tuple[float, float]:
        began = time.perf_counter()
        for step in range(200):
            sink(measurements[step])
        put = time.perf_counter() - began
        sink._patience = patience
        sink.close()
        return put / 200 * 1e6, (time.perf_counter() - began) / 200 * 1e6

    measurements = [measurement(step) for step in range(200)]
    print(f"{'tracker':<14}{'training thread, us':>22}{'until delivered, us':>22}")
    with tempfile.TemporaryDirectory() as folder:
        makers = {"tensorboard": lambda: TensorBoardSink(folder), "stuck": lambda: Stuck(limit=64)}
        for name, make in makers.items():
            costs = [time_of(make(), 0.01 if name == "stuck" else 60.0) for _ in range(rounds)]
            put, all_of_it = (statistics.median(column) for column in zip(*costs))
            print(f"{name:<14}{put:>22.1f}{'never' if name == 'stuck' else format(all_of_it, '.0f'):>22}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    trackers(parser.parse_args().rounds)


if __name__ == "__main__":
    main()
