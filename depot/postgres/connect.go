package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// parse makes a connection's configuration. No error has any part of the URL, which may have
// a password in it; the parser's own errors do.
func parse(c *Config) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(c.URL)
	if err != nil {
		var file *fs.PathError
		if errors.As(err, &file) {
			return nil, fmt.Errorf("postgres: Config.URL names a file that cannot be read: %w", file)
		}
		return nil, errors.New("postgres: Config.URL cannot be parsed: want \"postgres://user:password@host:5432/database?sslmode=verify-full\", " +
			"with %40 for @, %2F for / and so on in the password, or leave the password to Config.Password; " +
			"an unknown sslmode, or a certificate that is none, is an error too")
	}
	if p := c.Password.Reveal(); p != "" {
		config.Password = p
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "scepkit"
	}
	if config.ConnectTimeout == 0 || config.ConnectTimeout > c.Timeout/2 {
		config.ConnectTimeout = c.Timeout / 2 // for each server, so that there is time for another
	}
	config.ValidateConnect = session(c)
	return config, nil
}

// nameOf returns the user, servers and database, for errors.
func nameOf(c *pgx.ConnConfig) string {
	hosts := []string{net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))}
	for _, f := range c.Fallbacks { // there is one with and one without TLS, perhaps
		if h := net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port))); h != hosts[len(hosts)-1] {
			hosts = append(hosts, h)
		}
	}
	return fmt.Sprintf("%s@%s/%s", c.User, strings.Join(hosts, ","), c.Database)
}

// sessionSettings are for every connection: what is acknowledged is on the disk, whatever the
// server's default; nothing waits in the server after its caller has given up, so that an answer
// comes in time that says for certain that nothing has happened.
//
// Plans are those of planSettings.
const sessionSettings = `SELECT current_setting('transaction_read_only'), pg_backend_pid(),
	set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false),
	set_config('default_transaction_isolation', 'read committed', false),
	set_config('search_path', $1, false),
	set_config('client_encoding', 'UTF8', false),
	` + planSettings + `,
	set_config('statement_timeout', $2, false),
	set_config('lock_timeout', $3, false),
	set_config('idle_in_transaction_session_timeout', $4, false),
	set_config('scepkit.session', $5, false)`

// planSettings have a plan serve any arguments. For certain ones the server may think that a small
// index, of all that is pending, and sorting serve better than the one that has the order, and
// reads all of it for each page. It may also think so, or that a table is best read whole, while it
// has no statistics, as after an import: each query has its index, and is not to go without. As the
// server overestimates what such plans cost, it must be kept from compiling them.
const planSettings = `set_config('plan_cache_mode', 'force_generic_plan', false),
	set_config('enable_seqscan', 'off', false),
	set_config('enable_bitmapscan', 'off', false),
	set_config('enable_hashjoin', 'off', false),
	set_config('enable_sort', 'off', false),
	set_config('jit', 'off', false)`

// What is noted with a connection.
const (
	isDirect  = "direct" // that a server, not a pooler, is at its other end
	theMark   = "mark"   // what its session has in scepkit.session, and no other
	theServer = "server"
)

// errReadOnly is a server that cannot be written to.
var errReadOnly = errors.New("server is read-only: a standby, or default_transaction_read_only is on; " +
	"name the server that can be written to in Config.URL, all of them if there are several")

// session returns what makes a connection ready for use; pgx tries the next server if it fails.
func session(c *Config) pgconn.ValidateConnectFunc {
	ms := func(d time.Duration) []byte { return strconv.AppendInt(nil, d.Milliseconds(), 10) }
	args := [][]byte{
		[]byte(pgx.Identifier{c.Schema}.Sanitize()),
		ms(c.Timeout * 6 / 10), ms(c.Timeout / 2), ms(c.Timeout),
	}
	return func(ctx context.Context, pc *pgconn.PgConn) error {
		mark := strconv.FormatUint(rand.Uint64(), 16)
		pc.CustomData()[theMark] = mark
		r := pc.ExecParams(ctx, sessionSettings, append(args[:len(args):len(args)], []byte(mark)), nil, nil, nil).Read()
		switch {
		case r.Err != nil:
			return r.Err
		case len(r.Rows) != 1 || string(r.Rows[0][0]) != "off":
			return errReadOnly
		case string(r.Rows[0][1]) == strconv.FormatUint(uint64(pc.PID()), 10):
			pc.CustomData()[isDirect] = true
		}
		return nil
	}
}

// errPooled is a pooler that gives a session to several clients.
var errPooled = errors.New("a pooler gives the server's sessions to several clients in turn, so that settings are lost; " +
	"with PgBouncer, set pool_mode=session for this database")

// alive tries a connection, and that its session is still its own: not even two in a row need go
// to the same one through a pooler.
func alive(ctx context.Context, pc *pgconn.PgConn) error {
	if pc.CustomData()[isDirect] != nil {
		return pc.Ping(ctx)
	}
	r := pc.ExecParams(ctx, `SELECT current_setting('scepkit.session', true)`, nil, nil, nil, nil).Read()
	switch {
	case r.Err != nil:
		return r.Err
	case len(r.Rows) != 1 || string(r.Rows[0][0]) != pc.CustomData()[theMark]:
		return errPooled
	}
	return nil
}

// sockets are the network connections that are open, also those that pgx is closing in the
// background, which takes it up to 15 seconds if the server hangs.
//
// They let pgx make no cancel requests. What a server does by itself after a timeout ends what
// can be ended; a commit that waits for a standby would become visible by a cancel request, to
// be read and relied on, although the standby does not have it.
type sockets struct {
	dial pgconn.DialFunc

	mu     sync.Mutex
	open   map[*socket]bool
	closed bool
}

type socket struct {
	net.Conn
	of *sockets
}

// ourDial marks the context of a connection that is for use.
type ourDial struct{}

func (s *sockets) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	if ctx.Value(ourDial{}) == nil {
		return nil, errors.New("no cancel requests are made")
	}
	c, err := s.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	one := &socket{c, s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return nil, errClosed
	}
	s.open[one] = true
	return one, nil
}

func (s *socket) Close() error {
	s.of.mu.Lock()
	delete(s.of.open, s)
	s.of.mu.Unlock()
	return s.Conn.Close()
}

// close ends whatever still waits for a server.
func (s *sockets) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for one := range s.open {
		one.Conn.Close()
	}
	clear(s.open)
}
