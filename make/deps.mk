# `make deps`: install what is needed. apt as root or with sudo; elsewhere the names to ask for.
DEPS_BUILD := gcc libc6-dev make pkg-config git libopenmpi-dev openmpi-bin libhdf5-dev libdnnl-dev libopenblas-dev libjansson-dev libpcre2-dev libutf8proc-dev libconfig-dev \
 libxxhash-dev zlib1g-dev
DEPS_TEST := g++ libcmocka-dev bats procps shellcheck cppcheck clang-format universal-ctags python3-h5py python3-numpy python3-matplotlib
DEPS_DEMO := wordnet-base fortunes perl-doc manpages manpages-dev python3 libpython3-stdlib
DEPS_ALL := $(DEPS_BUILD) $(DEPS_TEST) $(DEPS_DEMO)

SUDO := $(if $(filter 0,$(shell id -u)),,$(shell command -v sudo 2>/dev/null))
CAN_APT := $(shell command -v apt-get >/dev/null 2>&1 && { [ "$$(id -u)" = 0 ] || command -v sudo >/dev/null 2>&1; } && echo 1)

.PHONY: deps
deps:
ifeq ($(CAN_APT),1)
	@missing=$$(for p in $(DEPS_ALL); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing: "$$missing; $(SUDO) apt-get update -qq && \
	 DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; else echo "everything needed is installed"; fi
else
	@echo "No apt with root or sudo here. Load or install these:"; \
	echo "  modules : gcc openmpi hdf5 onednn openblas"; \
	echo "  spack   : spack install openmpi hdf5 onednn openblas jansson pcre2 utf8proc libconfig xxhash zlib cmocka"; \
	echo "  python  : pip install --user h5py numpy matplotlib   (analysis only)"; \
	echo "  conda   : conda install -c conda-forge openmpi hdf5 onednn openblas jansson pcre2 utf8proc libconfig xxhash zlib cmocka"
endif
