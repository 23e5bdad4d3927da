// Package postgres keeps requests and certificates in a PostgreSQL database: the depot to use
// when several replicas serve one CA, or when one machine is not enough. On one machine
// depot/sqlite does the same without a server to look after.
//
//	db, err := postgres.Open(ctx, postgres.Config{URL: "postgres://scep@db.example.com/scep?sslmode=verify-full"})
//
// What a write has answered is on the server's disk, and on that of its synchronous standby if
// it has one, whatever synchronous_commit says there. If a connection is lost before the answer
// has come, the depot asks on another what has become of the write. It writes again only what is
// not there once the server has ended the session in which it could still have come; otherwise
// the error says that it may or may not have been written. A record and the one-time challenge that
// it spends are one write. While the database is away every call returns an error within
// [Config.Timeout], and when it is back the next call works.
//
// # Replicas
//
// Replicas of a program that serve one CA have the same database and Schema, the same
// [scep.Config], the keys of RAs included, and clocks that are right. Nothing else connects them,
// and each can be stopped or killed at any time. MaxConns of all together must be less than
// max_connections of the database. The example Replica is a whole one.
//
// # Standbys
//
// Name all database servers: "postgres://scep@db1,db2/scep". Only one that can be written to is used. When it is
// lost, and every half hour, all are asked, and the one that was promoted last is used: that with
// the latest timeline. What was on its way to another is looked for there. A server that still
// runs, or runs again, although a standby was promoted in its place is refused by every process
// that has seen that standby, and its log says so. Who does not reach the standby cannot know:
// have the cluster manager shut the old server down.
//
// A failover to a standby that is not synchronous can lose what has been acknowledged: set
// synchronous_standby_names on a server that is to be replaced by another. While such a standby is
// away writes fail, without leaving ever more sessions waiting in the server, and nothing is shown
// that the standby does not have. A server that was started again would show it: before anything
// is read there, an empty transaction must have reached the standby. Only what a session had
// written that somebody ends while it waits is shown too early.
//
// # Rights
//
// Open makes the tables, in a schema of their own, if its role may create; otherwise let it be
// run once by a role that may. To serve, a role needs no more than
//
//	GRANT USAGE ON SCHEMA scep TO scep;
//	GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA scep TO scep;
//
// Open refuses tables of a later version of this package. The view certificates shows the records
// in clear text:
//
//	SELECT subject, serial, not_after FROM scep.certificates WHERE state = 'issued';
//
// In text that a client may choose, a backslash, a zero byte and what is not UTF-8 are written as
// \\, \x00 and so on, since PostgreSQL holds no such text.
//
// # Size
//
// A record takes 3 to 4 kB: a row of 400 bytes, the CSR, the template and the certificate, and
// 270 bytes of indexes. Give the server the memory to keep the indexes, 2.5 GB for ten million
// records, and a checkpoint_timeout of half an hour: after a checkpoint, the first change of a
// page logs the whole page. Then the time that an enrolment takes hardly depends on how many
// records there are; while the indexes have to be read from the disk, as after a restart, it
// takes some milliseconds longer.
//
// Records are in the order in which they came, and listed in that of their IDs. So a page of a
// hundred costs some hundreds of reads if they are not in memory, and listing all records takes as
// long as the disk takes for three or four reads of each; package transfer has several of them under
// way at once. [DB.Scan], and so an export, reads the tables from their beginning to their end, which
// takes the server some 30 microseconds of each record. Revocations, and what is pending, are found
// by indexes of their own. Records that need no longer be kept are deleted by [DB.Prune].
//
// # Poolers and other servers
//
// Settings are made, and statements prepared, for a session: through PgBouncer use
// pool_mode=session. Open refuses a pooler that gives a session to several clients in turn. A
// write that was on its way when the pooler was lost, and is not there, may or may not have been
// written: only without a pooler it can be seen that nothing comes of it any more. For as long as
// server_login_retry says, 15 seconds, PgBouncer does not try again a server that it found away.
//
// The tests run against PostgreSQL 15 and PgBouncer 1.18; a server older than 13 is refused.
// CockroachDB and its like are not tested. What is used beyond their SQL has a way round it in the
// code, as advisory locks while migrating, except the advisory lock of a challenge limit: on a
// server that has none, use a negative challenge.OneTime.Limit.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/scep"
)

var (
	_ scep.Depot            = (*DB)(nil)
	_ scep.Lister           = (*DB)(nil)
	_ scep.RevocationLister = (*DB)(nil)
	_ scep.Pruner           = (*DB)(nil)
	_ scep.Scanner          = (*DB)(nil)
	_ scep.Loader           = (*DB)(nil)
	_ scep.ChallengeStore   = (*DB)(nil)
	_ scep.Spender          = (*DB)(nil)
	_ io.Closer             = (*DB)(nil)
)

// Config says where the database is. Only URL is required.
type Config struct {
	// URL is as libpq takes it: "postgres://user@host:5432/database?sslmode=verify-full", or
	// "host=... dbname=...". Whatever it leaves out comes from the environment variables and
	// the password file of libpq.
	URL string

	// Password, if not empty, takes the place of the one in URL.
	Password scep.Secret

	// Schema is where the tables are; if empty, "scep".
	Schema string

	// MaxConns is how many connections there are at most; if zero, 10. Callers beyond that
	// wait in the order in which they came.
	MaxConns int

	// Timeout is how long a call takes at most, waiting, connecting, trying again and reading
	// back included; if zero, 1.5 seconds. Longer than that the network or the disk should
	// never need.
	Timeout time.Duration

	// Log is told when the database is lost and when it is back; if nil, nobody is.
	Log *slog.Logger
}

// LogValue implements [slog.LogValuer]; it leaves out URL, which may have a password in it.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// String returns c without URL, which may have a password in it.
func (c Config) String() string {
	return fmt.Sprintf("postgres.Config{URL:[redacted] Schema:%q MaxConns:%d Timeout:%v}", c.Schema, c.MaxConns, c.Timeout)
}

// GoString returns the same as String.
func (c Config) GoString() string { return c.String() }

// DB is a [scep.Depot], a [scep.Lister], a [scep.RevocationLister], a [scep.Pruner], a
// [scep.Scanner], a [scep.Loader], a [scep.ChallengeStore] and a [scep.Spender] over one database,
// which any number of processes may share. Once a statement has been sent, a call goes on for up to
// 0.4 seconds after its context has ended, so as to learn what has become of it.
type DB struct {
	name    string // for errors
	timeout time.Duration
	pool    *pool
	issuers sync.Map // the names that are in the table, as far as is known; there are few
}

// Open connects, and makes or updates the tables if need be. It takes no longer than
// [Config.Timeout] to connect; to update the tables of a large depot it takes as long as ctx
// allows. It does not wait for a server that is not there yet, or starts up: call it again. The
// caller closes the DB.
func Open(ctx context.Context, c Config) (*DB, error) {
	if c.Schema == "" {
		c.Schema = "scep"
	}
	if c.MaxConns == 0 {
		c.MaxConns = 10
	}
	if c.Timeout == 0 {
		c.Timeout = 1500 * time.Millisecond
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.URL == "":
		return nil, errors.New(`postgres: Config.URL is required: "postgres://user@host/database"`)
	case c.MaxConns < 0:
		return nil, errors.New("postgres: Config.MaxConns is negative")
	case c.Timeout < 100*time.Millisecond:
		return nil, fmt.Errorf("postgres: Config.Timeout is %v; want 100ms or more", c.Timeout)
	}
	config, err := parse(&c)
	if err != nil {
		return nil, err
	}
	db := &DB{name: nameOf(config), timeout: c.Timeout}
	db.pool = newPool(config, c.MaxConns, c.Timeout, db.name, c.Log)
	if err := db.prepare(ctx, c.Schema); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// prepare sees to the tables, and leaves a connection for the first call.
func (db *DB) prepare(ctx context.Context, schema string) error {
	begun, cancel := context.WithTimeout(ctx, db.timeout)
	defer cancel()
	if err := db.pool.enter(begun); err != nil {
		return err
	}
	defer db.pool.leave()
	l, err := db.pool.take(begun)
	if err != nil {
		return fmt.Errorf("postgres: %s: %w", db.name, explain(err))
	}
	used := true
	if err = db.pool.checkPooler(begun, l); err == nil {
		err = db.checkServer(begun, l.Conn)
	}
	if err == nil {
		used, err = migrate(ctx, begun, l.Conn, schema)
	}
	if err != nil {
		db.pool.drop(l)
		return fmt.Errorf("postgres: %s: %w", db.name, explain(err))
	}
	if used {
		db.pool.drop(l)
	} else {
		db.pool.give(l)
	}
	return nil
}

// Close waits for the calls under way, and closes the connections. Whatever is called afterwards
// returns an error. Closing again does nothing.
func (db *DB) Close() error {
	db.pool.close()
	return nil
}

// checkServer reports that a database cannot hold the tables.
func (db *DB) checkServer(ctx context.Context, c *pgx.Conn) error {
	var version int
	var encoding, fsync string
	err := c.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),
		coalesce(current_setting('fsync', true), 'on')`).Scan(&version, &encoding, &fsync)
	switch {
	case err != nil:
		return err
	case version < 130000:
		return fmt.Errorf("server version is %d; PostgreSQL 13 or newer is needed", version/10000)
	case encoding != "UTF8":
		return fmt.Errorf("encoding of the database is %s; create it with ENCODING 'UTF8'", encoding)
	case fsync != "on":
		db.pool.log.Warn("postgres: fsync is off on the server: what it acknowledges does not survive a loss of power", "database", db.name)
	}
	return nil
}

// checkIDs reports that ctx has ended, or which ID is not one.
func checkIDs(ctx context.Context, ids ...scep.ID) error {
	for _, id := range ids {
		if !id.Valid() {
			return fmt.Errorf("postgres: %.80q is not an ID; want 64 lower-case hexadecimal digits", string(id))
		}
	}
	return ctx.Err()
}
