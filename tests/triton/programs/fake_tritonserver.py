"""A fake tritonserver with TensorRT-LLM's C++ backend, and its trtllmExecutorWorker: real ranks of MPI, no engine.

It takes the command lines and environments that these modes want, and no other. Rank 0 serves health, model control,
metrics and one model's gRPC stream; the others wait for the leader's word as the backend does. A request's answer is
its text; one of "wait" is not finished before the file ``release`` lies beside the settings. ``mishaps``: rank →
"exit" or "hang", while it loads.
"""

import http.server
import json
import os
import re
import signal
import struct
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

sys.path.insert(0, os.environ["FAKE_PROGRAMS"])
from fake_control import FOLDER, record, refuse, setting

ENGINE = "tensorrt_llm"
LOADED, SHUTDOWN = 1, 2
ANY = None
COMMON = {
    "disable-auto-complete-config": "",
    "model-control-mode": "explicit",
    "backend-directory": ANY,
    "model-load-thread-count": "4",
    "exit-on-error": "true",
    "exit-timeout-secs": ANY,
    "allow-cpu-metrics": "false",
    "model-repository": ANY,
    "load-model": ANY,
    "backend-config": ANY,
}
LEADER = {
    "strict-readiness": "true",
    "http-address": "127.0.0.1",
    "http-port": ANY,
    "http-thread-count": ANY,
    "http-restricted-api": ANY,
    "grpc-address": "127.0.0.1",
    "grpc-port": ANY,
    "grpc-infer-allocation-pool-size": ANY,
    "grpc-header-forward-pattern": "(?i)(shardyard_call)",
    "grpc-restricted-protocol": ANY,
    "metrics-address": "127.0.0.1",
    "metrics-port": ANY,
    "metrics-interval-ms": ANY,
    "allow-gpu-metrics": "true",
}
WORKER = dict.fromkeys(("allow-http", "allow-grpc", "allow-metrics", "allow-gpu-metrics"), "false")


def check(rank, options):
    """End with an error unless these are the words of such a rank."""
    wanted = {**COMMON, **(WORKER if rank else LEADER)}
    if options.keys() != wanted.keys():
        refuse("tritonserver", f"rank {rank}: options {sorted(options.keys() ^ wanted.keys())}")
    for name, value in wanted.items():
        if value is not ANY and options[name] != [value]:
            refuse("tritonserver", f"rank {rank}: --{name}={options[name]}")
    prefix = f"python,shm-region-prefix-name=shardyard_{os.environ['SHARDYARD_RUN']}_{rank}_"
    if prefix not in options["backend-config"]:
        refuse("tritonserver", f"rank {rank}: {options['backend-config']}")
    repos = [Path(path) for path in options["model-repository"]]
    names = {path.parent.name for repo in repos for path in repo.glob("*/config.pbtxt")} - {"readiness"}
    if set(options["load-model"]) != ({ENGINE} if rank else names):
        refuse("tritonserver", f"rank {rank}: loads {options['load-model']}")
    image = Path(sys.argv[1])
    environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": setting("visible")}
    for name, value in environment.items():
        if os.environ.get(name) != value:
            refuse("tritonserver", f"rank {rank}: {name}={os.environ.get(name)}")
    # mpirun puts its own libraries before.
    libraries = os.environ["LD_LIBRARY_PATH"].split(os.pathsep)
    if options["backend-directory"] != [str(image / "backends")] or str(image / "lib") not in libraries:
        refuse("tritonserver", f"rank {rank}: {options['backend-directory']} {libraries}")
    return repos[0]


def wait_for(question):
    """Wait, as a rank without work: the machine has fewer cores than ranks."""
    while not question():
        time.sleep(0.02)


def load(rank):
    mishap = setting("mishaps", {}).get(str(rank))
    if mishap == "exit":
        print("[TensorRT-LLM][ERROR] CUDA runtime error in cudaSetDevice: invalid device ordinal", flush=True)
        os._exit(1)
    if mishap == "hang":
        print("[TensorRT-LLM] waiting for ever", flush=True)
        wait_for(lambda: False)


def serve_as_worker(comm, rank, leader=0):
    load(rank)
    comm.send(rank, leader, LOADED)
    print(f"rank {rank} holds its part of the engine", flush=True)
    wait_for(lambda: comm.Iprobe(leader, SHUTDOWN))
    comm.recv(None, leader, SHUTDOWN)
    print("Terminating worker process since shutdown signal was received from leader or orchestrator", flush=True)


class Server:
    """Rank 0: what clients and the supervisor see."""

    def __init__(self, options):
        self.options, self.ready, self.active = options, False, 0
        self.key = options["http-restricted-api"][0].partition("=")[2]
        for port in (options["http-port"][0], options["metrics-port"][0]):
            handler = type("Handler", (Handler,), {"server_of": self})
            here = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), handler)
            threading.Thread(target=here.serve_forever, daemon=True).start()
        self.grpc()

    def grpc(self):
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        outer = self

        class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
            def ModelStreamInfer(self, requests, context):
                for request in requests:
                    outer.active += 1
                    text = request.raw_input_contents[0][4:]
                    record("request", text=text.decode())
                    while text == b"wait" and not (FOLDER / "release").exists():
                        time.sleep(0.02)
                    answer = service_pb2.ModelInferResponse(model_name="ensemble", id=request.id)
                    answer.outputs.add(name="text_output", datatype="BYTES", shape=[1])
                    answer.raw_output_contents.append(struct.pack("<I", len(text)) + text)
                    answer.parameters["triton_final_response"].bool_param = True
                    yield service_pb2.ModelStreamInferResponse(infer_response=answer)
                    outer.active -= 1

        server = grpc.server(futures.ThreadPoolExecutor(8))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
        server.add_insecure_port(f"127.0.0.1:{self.options['grpc-port'][0]}")
        server.start()
        self.server = server


class Handler(http.server.BaseHTTPRequestHandler):
    """Health and model control on one port, metrics on another."""

    def log_message(self, *words):
        pass

    def _end(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/metrics":
            line = 'nv_trt_llm_request_metrics{model="%s",request_type="active",version="1"} %d\n'
            self._end(200, (line % (ENGINE, self.server_of.active)).encode())
        else:
            self._end(200 if self.path == "/v2/health/live" or self.server_of.ready else 400)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["x-shardyard-control"] != self.server_of.key:
            return self._end(403)
        if self.path == "/v2/repository/models/readiness/load":
            self.server_of.ready = not json.loads(body)
        return self._end(200)


def serve_as_leader(options, ranks, comm, first):
    """Load, answer, and at SIGTERM finish what is open and dismiss the workers, whose ranks begin at ``first``."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    load(0)
    server = Server(options)
    for worker in range(first, first + ranks):
        wait_for(lambda worker=worker: comm.Iprobe(worker, LOADED) or ended.is_set())
        if ended.is_set():
            sys.exit(1)
        comm.recv(None, worker, LOADED)
    for name in options["load-model"]:
        print(f"I1123 model_lifecycle.cc:849] successfully loaded '{name}'", flush=True)
    server.ready = True
    wait_for(ended.is_set)
    deadline = time.monotonic() + int(options["exit-timeout-secs"][0])
    wait_for(lambda: not server.active or time.monotonic() > deadline)
    for worker in range(first, first + ranks):
        comm.send(None, worker, SHUTDOWN)


def tritonserver(words):
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    options = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        options.setdefault(name, []).append(value)
    repo = check(world.rank, options)
    config = (repo / ENGINE / "config.pbtxt").read_text()
    parameters = dict(re.findall(r'key: "(\w+)" value \{ string_value: "([^"]*)" \}', config))
    engine = json.loads((Path(parameters["gpt_model_path"]) / "config.json").read_text())
    ranks = engine["pretrained_config"]["mapping"]["world_size"]
    mode = os.environ.get("TRTLLM_ORCHESTRATOR", "0") + os.environ.get("TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES", "")
    record("tritonserver", rank=world.rank, world=world.size, mode=mode, argv=words)
    if world.size != {"0": ranks, "11": 1, "10": 1 + ranks}[mode]:
        refuse("tritonserver", "With communicationMode kLEADER, MPI worldSize is expected to be equal to tp*pp")
    if world.rank:
        serve_as_worker(world, world.rank)
    elif mode == "11":
        workers = MPI.COMM_SELF.Spawn(parameters["executor_worker_path"], maxprocs=ranks)
        serve_as_leader(options, ranks, workers, 0)
        workers.Disconnect()
    else:
        serve_as_leader(options, world.size - 1, world, 1)


def executor_worker():
    from mpi4py import MPI

    parent = MPI.Comm.Get_parent()
    serve_as_worker(parent, MPI.COMM_WORLD.rank)
    parent.Disconnect()


if __name__ == "__main__":
    if Path(sys.argv[0]).name == "trtllmExecutorWorker":
        executor_worker()
    else:
        try:
            tritonserver(sys.argv[2:])
        except SystemExit as error:
            # As a crash: MPI's own end would wait for the other ranks.
            print(error, flush=True)
            os._exit(1)
