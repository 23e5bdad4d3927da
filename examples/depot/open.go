package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

// A database is what both kinds of depot are.
type database interface {
	scep.Depot
	scep.Lister
	scep.RevocationLister
	scep.Pruner
	scep.Scanner
	io.Closer
}

const (
	dbUsage = "`DB`: a file, a postgres:// URL, or env:NAME for either in an environment variable"

	// patience is how long one statement may take; a person is waiting, not a device.
	patience = time.Minute

	// countingPatience is the same for one that counts millions of records.
	countingPatience = time.Hour
)

// database makes the flag of this name for a database, and another for its schema.
func (c *command) database(name string) *string {
	c.flags.StringVar(&c.schema, "schema", "scep", "`name` of the schema that has the tables in PostgreSQL, as the server's postgres.Config has it")
	return c.flags.String(name, "", dbUsage)
}

// open opens the database that a flag names; with create, also a file or tables that are not there.
// What it was given may have a password in it, and is in no error unless it is the name of a file.
func (c *command) open(ctx context.Context, where string, create bool, timeout time.Duration) (database, error) {
	if name, ok := strings.CutPrefix(where, "env:"); ok {
		if where = os.Getenv(name); where == "" {
			return nil, fmt.Errorf("the environment variable %s, which is to name the database, is empty", name)
		}
	}
	scheme, _, ok := strings.Cut(where, "://")
	switch {
	case ok && (scheme == "postgres" || scheme == "postgresql"):
		if !create && !there(ctx, where, c.schema) {
			return nil, fmt.Errorf("the database has no tables of depot/postgres in its schema %q; name another database, or -schema", c.schema)
		}
		return postgres.Open(ctx, postgres.Config{URL: where, Schema: c.schema, Timeout: timeout})
	case ok, strings.Contains(where, "password="):
		return nil, errors.New("a database is a file, or a URL that begins with postgres://")
	}
	if !create {
		if _, err := os.Stat(where); err != nil {
			return nil, err
		}
	}
	return sqlite.Open(where)
}

// there reports whether a PostgreSQL database has the tables, or that this cannot be told: who opens
// it says why.
func there(ctx context.Context, url, schema string) (yes bool) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	db, err := pgx.Connect(ctx, url)
	if err != nil {
		return true
	}
	defer db.Close(ctx)
	err = db.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", pgx.Identifier{schema, "migration"}.Sanitize()).Scan(&yes)
	return yes || err != nil
}
