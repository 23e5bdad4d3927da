package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// lockKey is the advisory lock of what in the database: of a schema that is being migrated, or
// of a profile's challenges that are being counted.
func lockKey(what ...string) int64 {
	h := sha256.New()
	for _, s := range what {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s))))
		h.Write([]byte(s))
	}
	return int64(binary.BigEndian.Uint64(h.Sum(nil)))
}

// migrate brings the tables up to date. While there is nothing to do it changes nothing, takes no
// lock, needs no rights, and is done within quick. Otherwise it reports that c has been used up.
func migrate(ctx, quick context.Context, c *pgx.Conn, schema string) (used bool, err error) {
	version, err := schemaVersion(quick, c, schema)
	if err != nil || version == len(migrations) {
		return false, err
	}
	// An index on a large table takes longer than a call may.
	if _, err := c.Exec(ctx, `SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false),
		set_config('idle_in_transaction_session_timeout', '0', false)`); err != nil {
		return true, err
	}
	locks := true
	for tries := 1; ; tries++ {
		err := migrateFrom(ctx, c, schema, locks)
		if err == nil {
			return true, nil
		}
		switch code(err) {
		case codeUndefinedFunction, codeFeature: // no advisory locks here
			if !locks {
				return true, err
			}
			locks = false
		case codeUnique, codeDuplicateTable, codeDuplicateSchema, codeSerialization, codeDeadlock:
			// Without a lock, somebody else was quicker.
			if tries > 20 || !pause(ctx, 50*time.Millisecond) {
				return true, err
			}
		default:
			return true, err
		}
	}
}

// schemaVersion returns the version of the tables, 0 if there are none. One that is too new is
// an error.
func schemaVersion(ctx context.Context, c *pgx.Conn, schema string) (int, error) {
	table := pgx.Identifier{schema, "migration"}.Sanitize()
	var there bool
	if err := c.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, table).Scan(&there); err != nil || !there {
		return 0, err
	}
	var version int
	if err := c.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM `+table).Scan(&version); err != nil {
		return 0, err
	}
	if version > len(migrations) {
		return 0, fmt.Errorf("schema %q has version %d, and this program knows %d; use a newer version of it", schema, version, len(migrations))
	}
	return version, nil
}

// migrateFrom does all the steps that are missing in one transaction.
func migrateFrom(ctx context.Context, c *pgx.Conn, schema string, lock bool) error {
	tx, err := c.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) // does nothing once it is committed
	if lock {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, lockKey("scepkit migration", schema)); err != nil {
			return err
		}
	}
	from, err := schemaVersion(ctx, c, schema)
	if err != nil || from == len(migrations) {
		return err
	}
	var steps []string
	if from == 0 {
		var there bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)`, schema).Scan(&there); err != nil {
			return err
		}
		if !there { // IF NOT EXISTS needs the right to create it all the same
			steps = append(steps, `CREATE SCHEMA `+pgx.Identifier{schema}.Sanitize())
		}
		steps = append(steps, `CREATE TABLE migration (version integer PRIMARY KEY, done timestamptz NOT NULL DEFAULT now())`)
	}
	for _, m := range migrations[from:] {
		steps = append(steps, m...)
	}
	for n := from; n < len(migrations); n++ {
		steps = append(steps, fmt.Sprintf(`INSERT INTO migration (version) VALUES (%d)`, n+1))
	}
	for _, step := range steps {
		if _, err := tx.Exec(ctx, step); err != nil {
			return fmt.Errorf("schema %q has version %d and cannot be brought to %d; open it once as a role that may create it: %.60s: %w",
				schema, from, len(migrations), step, err)
		}
	}
	return tx.Commit(ctx)
}
