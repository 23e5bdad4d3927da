package postgres_test

import (
	"context"
	"fmt"
	"os"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/scep"
)

func ExampleOpen() {
	// All the servers of which one can be written to; the password comes from a file, or from
	// PGPASSWORD.
	db, err := postgres.Open(context.Background(), postgres.Config{
		URL: "postgres://scep@db1.example.com,db2.example.com/scep?sslmode=verify-full&passfile=" + os.Getenv("CREDENTIALS_DIRECTORY") + "/pgpass",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	_ = scep.Config{Depot: db, Challenge: &challenge.OneTime{Store: db}}
}
