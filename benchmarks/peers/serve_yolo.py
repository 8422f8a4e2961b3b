"""Other model servers with YOLO. One file, so that all do the same work.

    python serve_yolo.py      (SERVER=litserve|mosec|fastapi, WEIGHTS, ENGINE, PRECISION, CACHE, THREADS, CAP, WORKERS,
                               SLO_S, PORT, PIDS, OURS)

fastapi is what users run today: `YOLO.predict` for each request. litserve and mosec batch on our engine and decode as
we do. Packages that this environment lacks come from the folders in OURS.
"""

# Each server imports what it needs and no more.
# ruff: noqa: PLC0415

import base64
import io
import os
import sys
from collections import defaultdict
from pathlib import Path

sys.path += os.environ["OURS"].split(os.pathsep)
SERVER, WEIGHTS = os.environ["SERVER"], os.environ["WEIGHTS"]
THREADS, CAP, WORKERS = int(os.environ["THREADS"]), int(os.environ["CAP"]), int(os.environ["WORKERS"])
SLO_S, PORT = float(os.environ["SLO_S"]), int(os.environ["PORT"])
WAIT_S = 0.005
CONFIDENCE = 0.35


class Model:
    """Encoded pictures to their boxes, on our engine."""

    def __init__(self):
        from aiworker.inference.child.decode import decode
        from aiworker.inference.child.serving import start_engine
        from aiworker.inference.messages import ChildSpec

        how = {"precision": os.environ["PRECISION"], "threads": THREADS, "cache_dir": os.environ["CACHE"]}
        spec = ChildSpec(WEIGHTS, os.environ["ENGINE"], "cpu", confidence=CONFIDENCE, **how)
        self.engine, self.decode = start_engine(spec), decode
        Path(os.environ["PIDS"], str(os.getpid())).touch()

    def __call__(self, images):
        groups = defaultdict(list)
        for index, image in enumerate(images):
            prepared = self.engine.prepare(self.decode(image, 10**8))
            groups[prepared.pixels.shape].append((index, prepared))
        found = [()] * len(images)
        for group in groups.values():
            for start in range(0, len(group), self.engine.pass_size):
                part = group[start : start + self.engine.pass_size]
                for (index, _), boxes in zip(part, self.engine.detect([each for _, each in part]), strict=True):
                    found[index] = boxes
        return found


if SERVER == "litserve":
    import litserve

    class Api(litserve.LitAPI):
        def setup(self, device):
            self.model = Model()

        def decode_request(self, request):
            return base64.b64decode(request["image"])

        def batch(self, inputs):
            return inputs

        def unbatch(self, output):
            return output

        def predict(self, inputs):
            return self.model(inputs)

        def encode_response(self, output):
            return {"boxes": output}

    def serve():
        api = Api(max_batch_size=CAP, batch_timeout=WAIT_S)
        server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, timeout=SLO_S)
        server.run(host="127.0.0.1", port=PORT, log_level="error", generate_client_file=False)


elif SERVER == "mosec":
    from mosec import Server, Worker

    class Detector(Worker):
        def __init__(self):
            self.model = Model()

        def deserialize(self, data):
            return data

        def forward(self, data):
            return [{"boxes": boxes} for boxes in self.model(data)]

    def serve():
        sys.argv = ["mosec", "--address", "127.0.0.1", "--port", str(PORT), "--timeout", str(int(SLO_S * 1000))]
        server = Server()
        server.append_worker(Detector, num=WORKERS, max_batch_size=CAP, max_wait_time=int(WAIT_S * 1000))
        server.run()


else:

    def serve():
        import uvicorn
        from fastapi import FastAPI, Request
        from PIL import Image
        from starlette.concurrency import run_in_threadpool
        from ultralytics import YOLO
        from ultralytics.nn.autobackend import AutoBackend

        # It only imports torchvision, which this machine may not be able to load.
        AutoBackend.warmup = lambda self, *arguments, **options: None
        app, model = FastAPI(), YOLO(WEIGHTS)

        def compute(image):
            boxes = model.predict(Image.open(io.BytesIO(image)), conf=CONFIDENCE, device="cpu", verbose=False)[0].boxes
            return {"boxes": boxes.data.tolist()}

        @app.post("/")
        async def detect(request: Request):
            return await run_in_threadpool(compute, await request.body())

        uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="error")


if __name__ == "__main__":
    serve()
