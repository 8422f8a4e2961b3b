"""The service that BentoML serves, see serve_sleep.py."""

import bentoml
from peers.serve_sleep import CAP, SLO_S, WORKERS, infer

BATCHING = {"batchable": True, "max_batch_size": CAP, "max_latency_ms": int(SLO_S * 1000)} if CAP > 1 else {}


@bentoml.service(workers=WORKERS, traffic={"timeout": 30})
class Sleep:
    @bentoml.api(**BATCHING)
    def predict(self, images: list[str]) -> list[str]:
        return infer(images)
