# MPI tests: tests/mpi/test_<x>.c is linked against src/comm and below (test_fuse_mpi.c: src/model, test_train_mpi.c: src/learn); tests/mpi/run.sh starts them on 1 to 4
# ranks. A libnccl.so.2 that goes over MPI stands beside them.
MPI_SOURCES := $(sort $(wildcard tests/mpi/test_*.c))
MPI_TESTS := $(if $(HAVE_MPI),$(patsubst tests/mpi/%.c,$(BUILD)/tests/mpi/%,$(MPI_SOURCES)) $(BUILD)/tests/mpi/libnccl.so.2)

$(BUILD)/tests/mpi/%: tests/mpi/%.c $(call emulated_archives,comm) $(wildcard tests/mpi/*.h)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD  $@")
	$(Q)$(CC) $(CFLAGS_ALL) $(FLAGS_comm) -Itests/mpi $< -Wl,--start-group $(call emulated_archives,comm) -Wl,--end-group $(LDFLAGS_ALL) -Wl,--as-needed $(call emulated_libraries,comm) -lm -o $@

$(BUILD)/tests/mpi/test_train_mpi: tests/mpi/test_train_mpi.c $(call emulated_archives,learn) $(wildcard tests/mpi/*.h tests/unit/*.h tests/unit/learn/*.h)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD  $@")
	$(Q)$(CC) $(CFLAGS_ALL) $(FLAGS_learn) -Itests/mpi -Itests/unit $< -Wl,--start-group $(call emulated_archives,learn) -Wl,--end-group $(LDFLAGS_ALL) -Wl,--as-needed $(call emulated_libraries,learn) -lcmocka -lm -o $@
$(BUILD)/tests/mpi/test_fuse_mpi: tests/mpi/test_fuse_mpi.c $(call emulated_archives,model) $(wildcard tests/mpi/*.h)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD  $@")
	$(Q)$(CC) $(CFLAGS_ALL) $(FLAGS_model) -Itests/mpi $< -Wl,--start-group $(call emulated_archives,model) -Wl,--end-group $(LDFLAGS_ALL) -Wl,--as-needed $(call emulated_libraries,model) -lm -o $@
$(BUILD)/tests/mpi/libnccl.so.2: tests/mpi/fake_nccl.c tests/mpi/fake_nccl.h
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c17 -g -O2 $(FLAGS_comm) -shared -fPIC -Wl,-soname,libnccl.so.2 $< $(MPI_LIBS) -o $@

.PHONY: mpi-tests mpi-check
mpi-tests: $(MPI_TESTS)
mpi-check: $(MPI_TESTS) ; @tests/mpi/run.sh $(BUILD)
