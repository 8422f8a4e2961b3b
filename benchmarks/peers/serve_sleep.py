"""Other model servers with a model that sleeps a + b*n for a batch of n. One file, so that all do the same work.

    python serve_sleep.py      (SERVER=litserve|mosec|bentoml|fastapi, A, B, CAP, WORKERS, SLO_S, PORT, PIDS)

Every process that computes leaves a file named for its id in the folder PIDS.
"""

import os
import sys
import threading
import time
from pathlib import Path

SERVER = os.environ["SERVER"]
A, B = float(os.environ["A"]), float(os.environ["B"])
CAP, WORKERS = int(os.environ["CAP"]), int(os.environ["WORKERS"])
SLO_S, PORT = float(os.environ["SLO_S"]), int(os.environ["PORT"])
WAIT_S = 0.005
HERE = ("--host", "127.0.0.1", "--port", str(PORT))


def infer(images):
    """The model."""
    Path(os.environ["PIDS"], str(os.getpid())).touch()
    time.sleep(A + B * len(images))
    return ["ok"] * len(images)


if SERVER == "litserve":
    import litserve

    class Api(litserve.LitAPI):
        def setup(self, device):
            pass

        def decode_request(self, request):
            return request["image"]

        def batch(self, inputs):
            return inputs

        def unbatch(self, output):
            return output

        def predict(self, inputs):
            return infer(inputs) if CAP > 1 else infer([inputs])[0]

        def encode_response(self, output):
            return {"answer": output}

    def serve():
        api = Api(max_batch_size=CAP, batch_timeout=WAIT_S if CAP > 1 else 0.0)
        options = {"accelerator": "cpu", "workers_per_device": WORKERS, "timeout": SLO_S, "restart_workers": True}
        server = litserve.LitServer(api, **options)
        server.run(host="127.0.0.1", port=PORT, log_level="error", generate_client_file=False)


elif SERVER == "mosec":
    from mosec import Server, Worker

    class Model(Worker):
        def deserialize(self, data):
            return data

        def serialize(self, data):
            return data.encode()

        def forward(self, data):
            return infer(data) if CAP > 1 else infer([data])[0]

    def serve():
        sys.argv = ["mosec", "--address", "127.0.0.1", "--port", str(PORT), "--timeout", str(int(SLO_S * 1000))]
        server = Server()
        server.append_worker(Model, num=WORKERS, max_batch_size=CAP, max_wait_time=int(WAIT_S * 1000))
        server.run()


elif SERVER == "bentoml":

    def serve():
        program = str(Path(sys.executable).parent / "bentoml")
        os.execv(program, [program, "serve", "peers.sleep_bento:Sleep", *HERE])


else:
    from fastapi import FastAPI, Request
    from starlette.concurrency import run_in_threadpool

    app, one_at_a_time = FastAPI(), threading.Lock()

    def compute():
        with one_at_a_time:
            return infer([b""])[0]

    @app.post("/")
    async def predict(request: Request):
        await request.body()
        return {"answer": await run_in_threadpool(compute)}

    def serve():
        program = [sys.executable, "-m", "uvicorn", "peers.serve_sleep:app", "--workers", str(WORKERS)]
        os.execv(sys.executable, [*program, *HERE, "--log-level", "error"])


if __name__ == "__main__":
    serve()
