# SPDX-License-Identifier: Apache-2.0
# The commands of the project. What they do is in tools/; CONTRIBUTING.md says when to use which.
.PHONY: demo test test-all lint fmt check docs bench clean

# Builds Gossamer in an environment of its own and shows what it does: some three minutes.
demo:
	@tools/start.sh tools/demo.py

# Sets everything up and runs every test on every supported Python there is.
test:
	@tools/start.sh tools/run_tests.py

# Everything everywhere; takes its time.
test-all:
	@tools/start.sh tools/run_tests.py --all

lint fmt check docs bench:
	@tools/start.sh tools/develop.py $@ $(ARGS)

clean:
	rm -rf build
