package postgres_test

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
)

// TestDepotThroughBouncer does as TestDepot through PgBouncer.
func TestDepotThroughBouncer(t *testing.T) {
	server := postgrestest.Shared(t)
	testDepot(t, server.Bouncer(t, "session").URL(server.Database(t)))
}

// TestBouncerAway kills PgBouncer under load and starts it again, and then the server behind it.
func TestBouncerAway(t *testing.T) {
	t.Parallel()
	server := postgrestest.Start(t)
	bouncer := server.Bouncer(t, "session")
	db := open(t, postgres.Config{URL: bouncer.URL(server.URL("postgres"))})
	j, stop := load(t, db, 8)
	j.reaches(t, 50)
	bouncer.Kill(t)
	bouncer.Start(t)
	heals(t, db, "started again")
	j.reaches(t, 50)
	server.Kill(t)
	server.Start(t)
	heals(t, db, "server started again")
	stop()
	j.check(t, open(t, postgres.Config{URL: server.URL("postgres")}))
}

// TestBouncerShares has poolers that give a session to several clients.
func TestBouncerShares(t *testing.T) {
	t.Parallel()
	server := postgrestest.Shared(t)
	url := server.Database(t)
	open(t, postgres.Config{URL: url}).Close() // there are tables already
	for _, mode := range [][]string{
		{"transaction"},
		{"transaction", "server_round_robin = 1"},
		{"transaction", "server_reset_query_always = 1"},
		{"transaction", "default_pool_size = 1"},
		{"statement"},
	} {
		bouncer := server.Bouncer(t, mode[0], mode[1:]...)
		var others []*pgx.Conn
		for range 4 {
			others = append(others, shell(t, bouncer.URL(url)))
		}
		together(len(others), func(i int) { // so that it has several sessions
			if _, err := others[i].Exec(t.Context(), "SELECT pg_sleep(0.05)"); err != nil {
				t.Error(err)
			}
		})
		begun := time.Now()
		db, err := postgres.Open(t.Context(), postgres.Config{URL: bouncer.URL(url)})
		if err == nil {
			db.Close()
			t.Errorf("%s: was opened", mode)
			continue
		}
		if !strings.Contains(err.Error(), "set pool_mode=session") {
			t.Errorf("%s: %v", mode, err)
		}
		if took := time.Since(begun); took > prompt {
			t.Errorf("%s: took %v", mode, took)
		}
	}

	// One session is all there is: that is enough, and not a reason to refuse.
	one := server.Bouncer(t, "session", "default_pool_size = 1")
	db := open(t, postgres.Config{URL: one.URL(url), MaxConns: 1})
	create(t, db, "one")
}
