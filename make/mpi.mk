# MPI tests: tests/mpi/test_<x>.c is linked against src/comm and below; tests/mpi/run.sh starts them on 1 to 4 ranks.
MPI_SOURCES := $(sort $(wildcard tests/mpi/test_*.c))
MPI_TESTS := $(if $(HAVE_MPI),$(patsubst tests/mpi/%.c,$(BUILD)/tests/mpi/%,$(MPI_SOURCES)))

$(BUILD)/tests/mpi/%: tests/mpi/%.c $(call emulated_archives,comm) $(wildcard tests/mpi/*.h)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD  $@")
	$(Q)$(CC) $(CFLAGS_ALL) $(FLAGS_comm) -Itests/mpi $< -Wl,--start-group $(call emulated_archives,comm) -Wl,--end-group $(LDFLAGS_ALL) -Wl,--as-needed $(call emulated_libraries,comm) -lm -o $@

.PHONY: mpi-tests mpi-check
mpi-tests: $(MPI_TESTS)
mpi-check: $(MPI_TESTS) ; @tests/mpi/run.sh $(BUILD)
