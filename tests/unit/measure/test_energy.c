/* Energy: the chip's counter, integrated power, the processors' counters; what is said where nothing
 * counts. The libraries and folders read are made by the test. */
#include "mb_test.h"

#include <sys/stat.h>
#include <time.h>

#include "base/clock.h"
#include "measure/energy.h"
#include "measure/energy_nvml.h"
#include "measure/energy_rapl.h"

static char folder[] = "/tmp/mb_energy_XXXXXX";

static void say(const char *name, const char *format, double value)
{
    char path[256], text[64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(text, sizeof text, format, value);
    mb_test_ok(mb_files_write(path, text, strlen(text)));
}

static void pause_for(double seconds)
{
    const struct timespec time = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&time, NULL);
}

/* ---- a library that speaks like NVML: numbers come from files beside it ---- */

static const char fake_source[] =
    "#include <stdio.h>\n#include <string.h>\n"
    "static double number(const char *name, double none) { char path[256]; double x = none;\n"
    "    snprintf(path, sizeof path, \""
    "FOLDER"
    "/%s\", name); FILE *f = fopen(path, \"r\"); if (!f) return none;\n"
    "    if (fscanf(f, \"%lf\", &x) != 1) x = none; fclose(f); return x; }\n"
    "static char chip[2]; static int alive;\n"
    "int nvmlInit_v2(void) { if (number(\"broken\", 0)) return 9; alive++; return 0; }\n"
    "int nvmlShutdown(void) { alive--; return 0; }\n"
    "const char *nvmlErrorString(int e) { return e == 9 ? \"Driver Not Loaded\" : e == 6 ? \"Not Found\" : "
    "\"other\"; }\n"
    "int nvmlSystemGetDriverVersion(char *t, unsigned n) { snprintf(t, n, \"570.86.15\"); return 0; }\n"
    "int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }\n"
    "int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { if (!alive || i > 1) return 2; *d = chip + i; "
    "return 0; }\n"
    "int nvmlDeviceGetHandleByPciBusId_v2(const char *b, void **d) {\n"
    "    if (strcmp(b, \"0000:C1:00.0\")) return 6; *d = chip + 1; return 0; }\n"
    "int nvmlDeviceGetName(void *d, char *t, unsigned n) { snprintf(t, n, \"Fake %d\", (int)((char *)d - "
    "chip)); return 0; }\n"
    "int nvmlDeviceGetPciInfo_v3(void *d, void *p) { memset(p, 0, 68);\n"
    "    strcpy((char *)p + 36, d == chip ? \"00000000:41:00.0\" : \"00000000:C1:00.0\"); return 0; }\n"
    "int nvmlDeviceGetMemoryInfo(void *d, unsigned long long *m) { m[0] = 85899345920ULL; m[1] = m[2] = 0; "
    "return d == 0; }\n"
    "int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *e) {\n"
    "    double x = number(\"joules\", -1); if (x < 0 || d == chip) return 3; *e = (unsigned long long)(1e3 "
    "* x + 0.5); return 0; }\n"
    "int nvmlDeviceGetPowerUsage(void *d, unsigned *p) {\n"
    "    double x = number(\"watts\", -1); if (x < 0 || d == 0) return 3; *p = (unsigned)(1e3 * x + 0.5); "
    "return 0; }\n"
    "int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *p) { *p = 700000; return d == 0; }\n";

/* Compiled with the machine's compiler; false where there is none. */
static bool make_fake(void)
{
    char path[256], command[640];
    mb_str text = MB_STR_EMPTY;
    const char *cut = strstr(fake_source, "FOLDER");
    mb_test_ok(mb_str_add_format(&text, "%.*s%s%s", (int)(cut - fake_source), fake_source, folder, cut + 6));
    snprintf(path, sizeof path, "%s/fake.c", folder);
    mb_test_ok(mb_files_write(path, mb_str_text(&text), text.length));
    mb_str_destroy(&text);
    snprintf(command, sizeof command, "cc -shared -fPIC -o %s/libfake.so %s/fake.c 2> %s/log", folder, folder,
             folder);
    if (system(command) != 0) return false;
    snprintf(path, sizeof path, "%s/libfake.so", folder);
    setenv("MB_NVML_LIBRARY", path, 1);
    return true;
}

static void forget(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
}

/* ---- GPUs ---- */

static void test_counter(void **state)
{
    double joules, slack;
    (void)state;
    if (!make_fake()) skip();
    say("joules", "%.3f", 1000.5);
    say("watts", "%.3f", 300);
    mb_energy *e = mb_energy_begin("0000:C1:00.0");
    assert_string_equal(mb_energy_source(e), "nvml");
    assert_string_equal(mb_energy_reason(e), "");
    say("joules", "%.3f", 1250.75);
    assert_true(mb_energy_read(e, &joules, &slack));
    assert_true(fabs(joules - 250.25) < 1e-9);
    assert_true(slack >= 0.05 * joules);
    say("joules", "%.3f", 3.0); /* the driver was loaded anew */
    assert_false(mb_energy_read(e, &joules, &slack));
    assert_non_null(strstr(mb_energy_reason(e), "began again"));
    say("joules", "%.3f", 5000.0); /* and it stays lost */
    assert_false(mb_energy_read(e, &joules, &slack));
    mb_energy_end(&e);
    assert_null(e);
}

/* A chip without a counter: a steady power, then twice as much. */
static void test_power(void **state)
{
    double joules, slack, before;
    (void)state;
    if (!make_fake()) skip();
    forget("joules");
    say("watts", "%.3f", 200);
    mb_energy *e = mb_energy_begin("0000:C1:00.0");
    const double began = mb_clock_seconds();
    assert_string_equal(mb_energy_source(e), "nvml power");
    pause_for(0.4);
    assert_true(mb_energy_read(e, &joules, &slack));
    assert_true(mb_test_is_near(joules, 200 * (mb_clock_seconds() - began), 0.05, 1));
    assert_true(mb_test_is_near(slack, 0.05 * joules, 1e-6, 1e-6)); /* nothing hid between equal readings */
    before = joules;
    say("watts", "%.3f", 400);
    const double changed = mb_clock_seconds();
    pause_for(0.4);
    assert_true(mb_energy_read(e, &joules, &slack));
    const double expected = 400 * (mb_clock_seconds() - changed);
    assert_true(fabs(joules - before - expected) <= slack - 0.05 * joules + 0.05 * expected + 1);
    assert_true(slack > 0.05 * joules + 1e-9); /* the step may have been anywhere between two readings */
    forget("watts");
    assert_false(mb_energy_read(e, &joules, &slack));
    assert_non_null(strstr(mb_energy_reason(e), "power any more"));
    mb_energy_end(&e);
}

static void test_list(void **state)
{
    char why[128] = "", driver[64];
    mb_energy_gpu gpus[4];
    (void)state;
    if (!make_fake()) skip();
    say("joules", "%.3f", 1);
    say("watts", "%.3f", 61.5);
    mb_energy_nvml *nvml = mb_energy_nvml_open(why, sizeof why);
    assert_non_null(nvml);
    assert_int_equal(mb_energy_nvml_list(nvml, gpus, 4, driver, sizeof driver), 2);
    assert_string_equal(driver, "570.86.15");
    assert_string_equal(gpus[1].name, "Fake 1");
    assert_string_equal(gpus[0].bus_id, "00000000:41:00.0");
    assert_true(gpus[1].has_counter && !gpus[0].has_counter);
    assert_true(gpus[1].memory_bytes == 80.0 * 1073741824 && gpus[1].watts == 61.5 &&
                gpus[1].limit_watts == 700);
    assert_int_equal(mb_energy_nvml_list(nvml, gpus, 1, driver, sizeof driver), 1);
    mb_energy_nvml_close(&nvml);
    mb_energy_nvml_close(&nvml);
}

static void expect_none(const char *bus_id, const char *part)
{
    double joules = -1, slack;
    mb_energy *e = mb_energy_begin(bus_id);
    assert_string_equal(mb_energy_source(e), "none");
    if (strstr(mb_energy_reason(e), part) == NULL) fail_msg("'%s' is not in '%s'", part, mb_energy_reason(e));
    assert_false(mb_energy_read(e, &joules, &slack));
    assert_true(joules == -1);
    mb_energy_end(&e);
}

static void test_none(void **state)
{
    (void)state;
    setenv("MB_NVML_LIBRARY", "/nonexistent/libnvidia-ml.so", 1);
    expect_none("0000:C1:00.0", "could not be opened");
    assert_string_equal(mb_energy_source(NULL), "none");
    assert_false(mb_energy_read(NULL, NULL, NULL));
    if (!make_fake()) skip();
    expect_none("0000:07:00.0", "Not Found");
    forget("joules");
    forget("watts");
    expect_none("0000:C1:00.0", "neither energy nor power");
    say("broken", "%.0f", 1);
    expect_none("0000:C1:00.0", "Driver Not Loaded");
    forget("broken");
}

/* ---- processors ---- */

static void zone(const char *name, const char *what, double range)
{
    char path[256], entry[64];
    snprintf(path, sizeof path, "%s/powercap/%s", folder, name);
    mb_test_ok(mb_files_make_folders(path));
    snprintf(path, sizeof path, "%s/powercap/%s/name", folder, name);
    mb_test_ok(mb_files_write(path, what, strlen(what)));
    snprintf(entry, sizeof entry, "powercap/%s/max_energy_range_uj", name);
    say(entry, "%.0f\n", range);
}
static void count(const char *name, double microjoules)
{
    char entry[64];
    snprintf(entry, sizeof entry, "powercap/%s/energy_uj", name);
    say(entry, "%.0f\n", microjoules);
}

static void make_powercap(void)
{
    char path[256];
    const double range = 262143328850;
    zone("intel-rapl:0", "package-0\n", range);
    zone("intel-rapl:1", "package-1\n", range);
    zone("intel-rapl:0:0", "core\n", range);
    zone("intel-rapl:0:1", "dram\n", 65712999613);
    zone("intel-rapl:2", "psys\n", range);
    zone("intel-rapl-mmio:0", "package-0\n", range);
    count("intel-rapl:0", 100e6);
    count("intel-rapl:1", 262143328850 - 4e6);
    count("intel-rapl:0:0", 0);
    count("intel-rapl:0:1", 7e6);
    count("intel-rapl:2", 0);
    count("intel-rapl-mmio:0", 0);
    snprintf(path, sizeof path, "%s/powercap", folder);
    setenv("MB_POWERCAP", path, 1);
}

/* Packages and memory count, once each; a counter that began again goes on. */
static void test_rapl(void **state)
{
    double joules, slack;
    (void)state;
    make_powercap();
    mb_energy *e = mb_energy_begin(NULL);
    assert_string_equal(mb_energy_source(e), "rapl");
    assert_true(mb_energy_read(e, &joules, &slack));
    assert_true(joules == 0 && slack == 0);
    count("intel-rapl:0", 150e6);
    count("intel-rapl:1", 2e6); /* 4 J to its end, and 2 J from there */
    count("intel-rapl:0:0", 900e6);
    count("intel-rapl:0:1", 8.5e6);
    count("intel-rapl:2", 900e6);
    count("intel-rapl-mmio:0", 900e6);
    assert_true(mb_energy_read(e, &joules, &slack));
    assert_true(fabs(joules - (50 + 6 + 1.5)) < 1e-6);
    assert_true(mb_test_is_near(slack, 0.05 * joules, 1e-9, 0));
    count("intel-rapl:0", 151e6);
    assert_true(mb_energy_read(e, &joules, &slack));
    assert_true(fabs(joules - 58.5) < 1e-6);
    forget("powercap/intel-rapl:1/energy_uj");
    assert_false(mb_energy_read(e, &joules, &slack));
    assert_non_null(strstr(mb_energy_reason(e), "any more"));
    mb_energy_end(&e);
}

static void test_no_rapl(void **state)
{
    char path[256];
    (void)state;
    make_powercap();
    snprintf(path, sizeof path, "%s/powercap/intel-rapl:0/energy_uj", folder);
    if (geteuid() != 0) {
        chmod(path, 0);
        expect_none("", "chmod a+r");
        chmod(path, 0600);
    }
    unlink(path);
    expect_none(NULL, "cannot be read (No such file");
    setenv("MB_POWERCAP", "/nonexistent/powercap", 1);
    expect_none("", "has no counters");
}

static int group_begin(void **state)
{
    (void)state;
    return mkdtemp(folder) != NULL ? 0 : -1;
}
static int group_end(void **state)
{
    const int bad = mb_files_remove_tree(folder) != MB_OK;
    return mb_test_teardown(state) != 0 || bad;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counter), cmocka_unit_test(test_power), cmocka_unit_test(test_list),
        cmocka_unit_test(test_none),    cmocka_unit_test(test_rapl),  cmocka_unit_test(test_no_rapl),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
