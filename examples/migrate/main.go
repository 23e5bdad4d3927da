// Migrate looks after the records of a SCEP server: it moves them from one database to another,
// brings them from a micromdm/scep server, and deletes those that are no longer needed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/scepkit/scepkit/depot/sqlite"
)

const usage = `usage: migrate COMMAND [flags]

  export    write all records to a file: -from scep.db -out FILE
  import    create the records in a file: -into scep.db FILE
  micromdm  create records of the certificates of a micromdm/scep server:
            -from DIR -into scep.db -ca ca.pem
  prune     delete old records: -db scep.db -expired-for 90d -denied-for 30d
            -abandoned-for 30d, each of them optional; -dry-run to count them

Databases are files of depot/sqlite, which may be in use. -into makes one if there
is none. FILE is made, and never replaced; it is as confidential as the database.
What was interrupted can be called again: what is done is skipped.
"migrate COMMAND -h" has the flags of a command.

Exit status: 0 done, 1 failed or not complete, 2 wrong usage.
`

var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "migrate:", err)
		os.Exit(1)
	}
}

// A command is one call of the program.
type command struct {
	stdout, stderr io.Writer
	flags          *flag.FlagSet
	told           time.Time // when progress was last shown
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c := &command{stdout: stdout, stderr: stderr, told: time.Now()}
	commands := map[string]func(context.Context, []string) error{
		"export": c.export, "import": c.load, "micromdm": c.micromdm, "prune": c.prune,
	}
	if len(args) == 1 && (args[0] == "help" || args[0] == "-h" || args[0] == "-help" || args[0] == "--help") {
		fmt.Fprint(stdout, usage)
		return nil
	}
	if len(args) == 0 || commands[args[0]] == nil {
		fmt.Fprint(stderr, usage)
		return errUsage
	}
	c.flags = flag.NewFlagSet("migrate "+args[0], flag.ContinueOnError)
	c.flags.SetOutput(stderr)
	return commands[args[0]](ctx, args[1:])
}

// parse parses the flags, of which these must be there, and so many arguments after them.
func (c *command) parse(args []string, arguments int, required ...string) error {
	if err := c.flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage // has been told
	}
	for _, name := range required {
		if c.flags.Lookup(name).Value.String() == "" {
			return c.wrong("-%s is missing", name)
		}
	}
	if c.flags.NArg() != arguments {
		return c.wrong("%d arguments, want %d; flags come first", c.flags.NArg(), arguments)
	}
	return nil
}

// wrong says what is wrong with the usage.
func (c *command) wrong(format string, args ...any) error {
	fmt.Fprintf(c.stderr, "%s: %s\n", c.flags.Name(), fmt.Sprintf(format, args...))
	return errUsage
}

// progress shows how far it has come, once a second.
func (c *command) progress(what string) func(n int) {
	return func(n int) {
		if time.Since(c.told) >= time.Second {
			c.told = time.Now()
			fmt.Fprintf(c.stderr, "%s so far: %d\n", what, n)
		}
	}
}

// open opens a database that is there; with create, also one that is not.
func open(path string, create bool) (*sqlite.DB, error) {
	if !create {
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
	}
	return sqlite.Open(path)
}
