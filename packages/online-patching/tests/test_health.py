from __future__ import annotations

import pickle
import threading

from online_patching.health import HealthLog, SlideHealth


def test_a_health_log_counts_from_many_threads_and_travels() -> None:
    log = HealthLog()

    def count() -> None:
        for _ in range(500):
            log.add("b", corrupt_tiles=1, outside_patches=2)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.add("a", missing_tiles=3)
    log.add("a", enlarged_patches=1)
    expected = {"a": SlideHealth(missing_tiles=3, enlarged_patches=1), "b": SlideHealth(2000, 0, 4000, 0)}
    assert log.report() == expected
    assert list(log.report()) == ["a", "b"]
    copy = pickle.loads(pickle.dumps(log))
    copy.add("a", missing_tiles=1)
    assert copy.report()["a"].missing_tiles == 4
    assert log.report() == expected
