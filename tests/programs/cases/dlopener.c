/* dlopen()s the plug-in from a thread and runs several enclaves of it at once. */
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include "check.h"

static int (*plugin_run)(unsigned);

static void *run(void *argument)
{
	int error = plugin_run((u64)argument);

	CHECK(!error, "plugin_run returned %d", error);
	return NULL;
}

static void *open_and_run(void *argument)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof path - 32);
	void *library;

	CHECK(n > 0, "readlink");
	path[n] = 0;
	strcpy(strrchr(path, '/') + 1, "plugin.so");
	library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	CHECK(library, "%s", dlerror());
	plugin_run = dlsym(library, "plugin_run");
	CHECK(plugin_run, "%s", dlerror());
	return run(argument);
}

static void in_one_thread(void)
{
	pthread_t id;

	CHECK(!pthread_create(&id, NULL, open_and_run, (void *)50), "pthread_create");
	pthread_join(id, NULL);
}

static void in_many_threads(void)
{
	pthread_t id[4];

	open_and_run((void *)10);
	for (u64 i = 0; i < 4; i++)
		CHECK(!pthread_create(&id[i], NULL, run, (void *)(40 + i)), "pthread_create");
	for (int i = 0; i < 4; i++)
		pthread_join(id[i], NULL);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		{ "in_one_thread", in_one_thread },
		{ "in_many_threads", in_many_threads },
	};

	return RUN(argc, argv, tests);
}
