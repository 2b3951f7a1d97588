# What is linked with the emulated GPU, and with the real one for its tests (the rules of cuda.mk that need those of rules.mk).
$(BUILD)/lib/libmb_ops_emulated.a: $(filter-out $(BUILD)/obj/ops/cuda/%,$(call objects,ops)) $(EMULATED_OBJECTS)
	@mkdir -p $(@D); rm -f $@
	$(Q)ar rcs $@ $^


EMULATED_PROGRAMS := $(if $(EMULATED),$(patsubst %,$(BUILD)/emulated/bin/moe-%,train score eval infer embed inspect))
$(BUILD)/emulated/bin/moe-%: $(BUILD)/obj/stage/main_%.o $(call emulated_archives,stage)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD  $@")
	$(Q)$(CC) $< -Wl,--start-group $(call emulated_archives,stage) -Wl,--end-group $(LDFLAGS_ALL) -Wl,--as-needed $(call emulated_libraries,stage) -lm -o $@

# Tests on the real library, for a machine with a GPU: $(BUILD)/gpu/tests/<folder>/test_<x>.
GPU_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/gpu/tests/%,$(filter tests/unit/ops/% tests/unit/model/% tests/unit/learn/%,$(UNIT_SOURCES)))
define gpu_rule
$(BUILD)/gpu/tests/$(1)/%: tests/unit/$(1)/%.c $$(call archives,$(1)) $$(wildcard tests/unit/*.h)
	@mkdir -p $$(@D)
	$$(if $$(Q),@echo "  LD  $$@")
	$$(Q)$$(CC) $$(CFLAGS_ALL) $$(FLAGS_$(1)) -Itests/unit $$< -Wl,--start-group $$(call archives,$(1)) -Wl,--end-group $$(LDFLAGS_ALL) $$(call libraries,$(1)) -lcmocka -lm -o $$@
endef
$(foreach f,ops model learn,$(eval $(call gpu_rule,$(f))))

.PHONY: emulated gpu-tests
emulated: $(EMULATED_PROGRAMS) unit
gpu-tests: $(GPU_TESTS)

# The emulator's own tests.
EMULATOR_TESTS := $(if $(EMULATED),$(patsubst tests/unit/%.cc,$(BUILD)/tests/%,$(sort $(wildcard tests/unit/emulator/test_*.cc))))
$(BUILD)/tests/emulator/%: tests/unit/emulator/%.cc $(wildcard tests/unit/emulator/*.h) $(BUILD)/lib/libmb_ops_emulated.a $(call emulated_archives,ops)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD  $@")
	$(Q)$(CXX) $(CXXFLAGS_EMULATED) $< -Wl,--start-group $(call emulated_archives,ops) -Wl,--end-group $(LDFLAGS_ALL) $(call emulated_libraries,ops) -lcmocka -lpthread -lm -o $@
unit: $(EMULATOR_TESTS)
