/* The peer of bench/cgroupfs.py: the least that libfuse 3 needs to serve one file of a cgroup tree.
 *
 *   fuse_server MOUNTPOINT
 *
 * One thread, direct_io, permissions checked by the kernel: as the server of epcgroup is set up.
 */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fuse.h>
#include <string.h>
#include <sys/stat.h>

static const char *const FILES[] = {"misc.capacity", "misc.current", "misc.peak", NULL};
static const char TEXT[] = "sgx_epc 16777216\n";

static int is_file(const char *path)
{
	for (int i = 0; FILES[i]; i++)
		if (!strcmp(path + 1, FILES[i]))
			return 1;
	return 0;
}

static int get_attributes(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	(void)fi;
	memset(st, 0, sizeof *st);
	if (!strcmp(path, "/")) {
		st->st_mode = S_IFDIR | 0755;
		st->st_nlink = 2;
		return 0;
	}
	if (!is_file(path))
		return -ENOENT;
	st->st_mode = S_IFREG | 0444;
	st->st_nlink = 1;
	st->st_size = 4096;
	return 0;
}

static int list(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset, struct fuse_file_info *fi,
		enum fuse_readdir_flags flags)
{
	(void)path, (void)offset, (void)fi, (void)flags;
	for (int i = 0; FILES[i]; i++)
		fill(buffer, FILES[i], NULL, 0, 0);
	return 0;
}

static int open_file(const char *path, struct fuse_file_info *fi)
{
	if (!is_file(path))
		return -ENOENT;
	fi->direct_io = 1;
	return 0;
}

static int read_file(const char *path, char *buffer, size_t size, off_t offset, struct fuse_file_info *fi)
{
	(void)path, (void)fi;
	size_t length = sizeof TEXT - 1;
	if ((size_t)offset >= length)
		return 0;
	if (size > length - offset)
		size = length - offset;
	memcpy(buffer, TEXT + offset, size);
	return size;
}

static const struct fuse_operations OPERATIONS = {
	.getattr = get_attributes,
	.readdir = list,
	.open = open_file,
	.read = read_file,
};

int main(int argc, char *argv[])
{
	char *arguments[] = {argv[0], "-f", "-s", "-odefault_permissions,allow_other,fsname=peer,subtype=peer", argv[1], NULL};

	if (argc != 2)
		return 2;
	return fuse_main(5, arguments, &OPERATIONS, NULL);
}
