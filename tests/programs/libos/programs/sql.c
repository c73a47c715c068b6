/* SQLite on a file: sql DATABASE STATEMENTS; prints the rows. */
#include <sqlite3.h>
#include <stdio.h>

static int row(void *data, int n, char **values, char **names)
{
	(void)data, (void)names;
	for (int i = 0; i < n; i++)
		printf("%s%c", values[i] ? values[i] : "NULL", i + 1 < n ? '|' : '\n');
	return 0;
}

int main(int argc, char **argv)
{
	sqlite3 *database;
	char *error = NULL;

	if (argc != 3 || sqlite3_open(argv[1], &database) || sqlite3_exec(database, argv[2], row, NULL, &error)) {
		fprintf(stderr, "%s\n", error ? error : "usage: sql DATABASE STATEMENTS");
		return 1;
	}
	return sqlite3_close(database);
}
