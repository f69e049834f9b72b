# make demo    train a small model on this machine with a coordinator, eight workers and a spare
#              and kill one of the workers on the way
# make demo-data  the same on what the data pipeline made of that text: builds the pipeline, too, makes token files of code and of prose,
#              and trains on both, mixed
# make demo-chat  fine-tune a small model on dialogues of people, have it learn a reward and optimize a policy by it, with workers that are
#              killed; installs the dialogues in .venv-chat
# make test    everything that must hold: formatting, lints, docs, all tests but those of the two lines below
# make test-data  the same for the data pipeline, which is a package and a program of its own; the stores of its tests are those of `make test`
# make test-data-ray  its tasks on a local cluster of Ray whose raylets and workers are killed; installs Ray in .venv-ray, 330 MB
# make test-peers  what we write and compute beside transformers, and what lm-eval and garak get of `toroid serve`; installs them with PyTorch in
#              .venv-peers (some gigabytes) and .venv-clients
# make test-deploy  what is in deploy/, tried: a real Slurm whose nodes are killed, pods run as their manifests say, hosts that are unplugged, the image; as root. test-slurm: the first alone
# make soak    a million simulated clusters (SEEDS=...: more; takes hours), then soak-control-plane and soak-chaos
# make soak-chaos  hundreds of kills at four shapes, pairs of workers together with the coordinator, and workers that are stopped, each
#              compared to the bit with an undisturbed run; some minutes each on two cores (KILLS=20: one), PRESET=tiny: a larger model
# make soak-taught  50 kills while a model is fine-tuned, a reward model learns and a policy is optimized, at two shapes each
# make soak-control-plane  50 coordinators that lead are killed, 10 leaders of etcd, and 20 together with a worker; a thousand jobs queue
#              and run on eight workers
# make check   the part of it that needs no running; writes no source file
# make fix     format, apply what clippy knows how to fix, and generate the code of the .proto files anew
# make bench   speed and memory of training steps, and how long a death holds a job up
# make bench-pytorch   speed and memory of training steps, beside the same model in PyTorch; installs it in .venv-bench
# make bench-generate   text by `toroid generate` and by transformers' generate in one run; installs those in .venv-peers
# make bench-elastic   a worker dies: Toroid, torchrun and torchft beside each other; installs PyTorch in .venv-bench
# make gpu-check   what can only be seen on a GPU: tests, kills, speed of each kernel. gpu-bundle only builds the folder for it, to be
#              copied to a machine with a GPU and without cargo; there: gpu-bundle/gpu_check.sh
# make bench-data   the data pipeline beside datatrove, text-dedup, rensa, datasketch and presidio; installs them in .venv-bench-data and -text-dedup
# make bench-fleet   one coordinator with 256, 2,048 and 8,192 workers whose trainers are played: what it costs, and how soon deaths are decided
# make bench-lighthouse   a coordinator of 256 and 1,000 workers beside torchft's lighthouse; installs torchft in .venv-bench
# make bench-dashboard   the page of a job of 2,048 places in Chromium: what it costs, and how soon it shows a death
# make bench-storage   a checkpoint of 1 GB goes to an S3-compatible store on this machine, beside the same with its own client; installs boto3 in .venv
# make bench-allreduce   all-reduce over this machine's processes beside gloo's; installs PyTorch in .venv-bench

.PHONY: demo demo-data demo-chat test test-data test-data-ray test-peers bench-data test-deploy test-slurm soak soak-control-plane soak-chaos soak-taught check fix bench bench-pytorch bench-generate bench-elastic bench-fleet bench-lighthouse bench-dashboard bench-storage bench-allreduce gpu-bundle gpu-check

KILLS ?= 200
SEEDS ?= 1000000
# Inputs of each parser that strangers reach.
FUZZ ?= 20000000
# Steps of milliseconds: what a soak is about is who dies when.
PRESET ?= micro
CHAOS = target/release/toroid chaos --verify --preset $(PRESET) --kills $(KILLS) --spares 2

demo:
	cargo run --release --bin toroid -- local

demo-data:
	cargo build --release -p toroid -p toroid-corpus --bin toroid --bin toroid-data
	scripts/demo_data.sh

demo-chat:
	scripts/chat_venv.sh
	cargo build --release -p toroid -p toroid-corpus -p toroid-serve --bin toroid --bin toroid-data --bin toroid-serve
	scripts/demo_chat.sh

# All is built once: what incremental builds keep for a next one would be 4 GB, and takes its time.
test: export CARGO_INCREMENTAL = 0
test:
	scripts/setup.sh
	cargo fmt --all --check
	scripts/tests.sh

test-data:
	scripts/setup.sh
	cargo clippy -p toroid-corpus -p toroid-tokens --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc -p toroid-corpus --no-deps --document-private-items
	cargo --config corpus/optimized.toml test -p toroid-corpus -p toroid-tokens

test-data-ray:
	scripts/ray_venv.sh
	cargo --config corpus/optimized.toml build -p toroid-corpus
	.venv-ray/bin/python corpus/tests/ray_cluster.py --toroid-data target/debug/toroid-data

# The test runs twice: what transformers saves after the first time is read by the second. All commands but those of cargo and pip have a time
# after which they fail; the whole workspace is named, as there `make test` has built it already.
HF_TEST = TOROID_HF_FOLDERS=$(CURDIR)/target/peers cargo test --workspace --exclude toroid-corpus --test numerics hf::
test-peers:
	scripts/peers_venv.sh
	rm -rf target/peers && mkdir -p target/peers
	$(HF_TEST)
	timeout 600 .venv-peers/bin/python scripts/check_transformers.py target/peers
	$(HF_TEST)
	timeout 600 .venv-peers/bin/python scripts/record_chat_templates.py
	scripts/clients_venv.sh
	cargo build --workspace --exclude toroid-corpus --bin toroid-serve
	.venv-clients/bin/python scripts/check_clients.py target/debug/toroid-serve target/peers/tiny

test-deploy:
	scripts/setup.sh --deploy
	cargo build --bin toroid
	.venv/bin/python integration-tests/deploy/image.py --toroid target/debug/toroid
	.venv/bin/python integration-tests/deploy/pods.py --toroid target/debug/toroid demo ha
	.venv/bin/python integration-tests/deploy/hosts.py --toroid target/debug/toroid 4 6
	.venv/bin/python integration-tests/deploy/slurm.py --toroid target/debug/toroid

test-slurm:
	scripts/setup.sh --deploy
	cargo build --bin toroid
	.venv/bin/python integration-tests/deploy/slurm.py --toroid target/debug/toroid

soak:
	TOROID_FUZZ=$(FUZZ) cargo test --release -p toroid-coordinator --test fuzz -- --nocapture
	TOROID_FUZZ=$(FUZZ) cargo test --release -p toroid-worker --lib -- --nocapture comm::tests::fuzz
	TOROID_SEEDS=$(SEEDS) cargo test --test simulation
	TOROID_SEEDS=$(SEEDS) cargo test -p toroid-failpoint --features failpoint --test simulation_of_failpoints
	$(MAKE) soak-control-plane
	$(MAKE) soak-chaos
	$(MAKE) soak-taught

soak-control-plane:
	TOROID_KILLS=50 cargo test --release --test control_plane -- --nocapture
	TOROID_STORE_KILLS=500 cargo test --release -p toroid-coordinator --test store crashes -- --nocapture
	TOROID_POOL_JOBS=1000 cargo test --release --test system pool::many_small_jobs -- --nocapture

soak-taught:
	cargo build --release --bin toroid
	cargo build --release -p toroid-corpus
	scripts/soak_taught.sh target/release/toroid target/release/toroid-data 50

soak-chaos:
	cargo build --release --bin toroid
	$(CHAOS) --tp 2 --pp 2 --dp 2
	$(CHAOS) --tp 1 --pp 1 --dp 8
	$(CHAOS) --tp 2 --pp 2 --dp 1
	$(CHAOS) --tp 1 --pp 2 --dp 4
	$(CHAOS) --tp 1 --pp 1 --dp 4 --at-once 2 --coordinator
	$(CHAOS) --tp 2 --pp 2 --dp 2 --how both --failure-timeout-ms 1000

check:
	cargo fmt --all --check
	cargo clippy --workspace --exclude toroid-corpus --all-targets -- -D warnings
	cargo clippy --workspace --exclude toroid-corpus --lib --test failpoint --test simulation_of_failpoints --test numerics --features toroid-failpoint/failpoint,toroid-worker/gpu -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --exclude toroid-corpus --no-deps --document-private-items

fix:
	TOROID_GENERATE=1 cargo test --workspace --test generated
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

bench:
	cargo run --release --bin toroid -- bench step
	cargo run --release --bin toroid -- bench recovery

bench-pytorch:
	scripts/bench_venv.sh
	cargo build --release --bin toroid
	.venv-bench/bin/python bench/pytorch.py --toroid target/release/toroid

bench-generate:
	scripts/peers_venv.sh
	cargo build --release --bin toroid
	.venv-peers/bin/python bench/generate.py --toroid target/release/toroid

gpu-bundle:
	scripts/gpu_bundle.sh

gpu-check:
	scripts/gpu_bundle.sh target/gpu-bundle
	target/gpu-bundle/gpu_check.sh

bench-elastic:
	scripts/bench_venv.sh
	cargo build --release --bin toroid
	.venv-bench/bin/python bench/elastic.py --toroid target/release/toroid

bench-data:
	scripts/bench_data_venv.sh
	cargo build --release -p toroid-corpus
	scripts/bench_data.sh target/release/toroid-data

bench-fleet:
	cargo build --release --bin toroid
	target/release/toroid bench fleet --workers 256,2048 --dashboards 10 --restart
	target/release/toroid bench fleet --workers 256,2048 --workers-per-agent 8 --restart
	target/release/toroid bench fleet --workers 2048 --workers-per-agent 8 --heartbeat-hz 10 --kills 0 --kill-hosts 0 --kill-racks 0
	target/release/toroid bench fleet --workers 256,1024,4096,16384,32768 --workers-per-agent 64 --failure-timeout-ms 60000 --seconds 10 --kills 5 --kill-hosts 1 --kill-racks 1 --restart

bench-lighthouse:
	scripts/bench_venv.sh
	cargo build --release --bin toroid
	.venv-bench/bin/python bench/lighthouse.py --toroid target/release/toroid

bench-dashboard:
	scripts/setup.sh
	cargo build --release --bin toroid
	.venv/bin/python bench/dashboard.py --toroid target/release/toroid

bench-storage:
	scripts/setup.sh
	.venv/bin/python -c 'import boto3' 2>/dev/null || .venv/bin/python -m pip install --quiet --disable-pip-version-check boto3
	cargo build --release --bin toroid
	.venv/bin/python bench/storage.py --toroid target/release/toroid

bench-allreduce:
	scripts/bench_venv.sh
	cargo build --release --bin toroid
	scripts/bench_allreduce.py
