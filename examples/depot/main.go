// Depot looks after the records of a SCEP server: it lists them, moves them from one database to
// another, brings them from a micromdm/scep server, deletes those that are no longer needed, and
// makes CRLs of them.
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
)

const usage = `usage: depot COMMAND [flags]

  list      print records, one a line: -db DB [-state STATE] [-profile NAME] [-json];
            the columns are ID, state, subject, serial number, when it was made, when
            the certificate ends, and who decided last; -json has more
  export    write all records to a file: -from DB -out FILE; - is the standard output
  import    create the records in a file: -into DB FILE; - is the standard input
  micromdm  create records of the certificates of a micromdm/scep server:
            -from DIR -into DB -ca ca.pem
  prune     delete old records: -db DB -expired-for 90d -denied-for 30d
            -abandoned-for 30d, each of them optional; -dry-run to count them
  crl       sign a CRL of all that is revoked: -db DB -key URI -out FILE
            [-validity 24h] [-shards N -url http://pki.example/{n}.crl]

DB is one of

  FILE                           of depot/sqlite
  postgres://USER@HOST/DATABASE  of depot/postgres
  env:NAME                       either, in the environment variable NAME

and may be in use. -into makes a file, or tables, where there are none. If the tables are
not in the schema scep, -schema NAME says where, with every command. Flags can be
seen by others on the machine, so keep a password out of them: give the URL by env:NAME,
or the password as PostgreSQL's own programs take it, in PGPASSWORD or ~/.pgpass.

URI is one of

  file:FILE?chain=FILE
  pkcs11:token=TOKEN;object=KEY?module-path=FILE&pin-source=file:/PATH
  tpm:FILE?chain=FILE

What export writes is as confidential as the database; it never replaces a file. Records
are in the order in which they were stored: sort the lines to compare two exports. Progress
is shown on the standard error. What was interrupted can be called again: import,
micromdm and prune go on with what is left. "depot COMMAND -h" has the flags of a command.

Exit status: 0 done, 1 failed or not complete, 2 wrong usage.
`

var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "depot: interrupted")
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "depot:", err)
		os.Exit(1)
	}
}

// A command is one call of the program.
type command struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	flags          *flag.FlagSet
	schema         string // of the tables in PostgreSQL
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	c := &command{stdin: stdin, stdout: stdout, stderr: stderr}
	commands := map[string]func(context.Context, []string) error{
		"list": c.list, "export": c.export, "import": c.load, "micromdm": c.micromdm, "prune": c.prune, "crl": c.crl,
	}
	if len(args) == 1 && (args[0] == "help" || args[0] == "-h" || args[0] == "-help" || args[0] == "--help") {
		fmt.Fprint(stdout, usage)
		return nil
	}
	if len(args) == 0 || commands[args[0]] == nil {
		fmt.Fprint(stderr, usage)
		return errUsage
	}
	c.flags = flag.NewFlagSet("depot "+args[0], flag.ContinueOnError)
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
