# make demo    train a small model on this machine with a coordinator, eight workers and a spare
# make test    everything that must hold: formatting, lints, docs, all tests
# make check   the part of it that needs no running; writes no source file
# make fix     format, and apply what clippy knows how to fix
# make bench   speed of a training step of one worker on one thread

.PHONY: demo test check fix bench

demo:
	cargo run --release --bin toroid -- local

test:
	scripts/setup.sh
	$(MAKE) check
	cargo test --workspace

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

fix:
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

bench:
	@if [ -f worker/examples/bench_stage.rs ]; then \
		cargo run --release -p toroid-worker --example bench_stage; \
	else \
		echo "bench: worker/examples/bench_stage.rs is missing, there is nothing to measure" >&2; exit 1; \
	fi
